// The table of kernels of one instruction set, compiled once for each.
#include "kernels.h"

#define PLIANT_STRING(text) #text
#define PLIANT_NAME(text) PLIANT_STRING(text)

namespace pliant {
namespace PLIANT_ISA {

void deform_conv2d(const Convolution&, const ConvolutionTensors&, Array, Array, int);
void deform_conv2d_backward(const Convolution&, const ConvolutionTensors&, Map, const ConvolutionGradients&, int);
void roi_pool(const Pooling&, const PoolingTensors&, Array, int);
void roi_pool_backward(const Pooling&, const PoolingTensors&, Array, const PoolingGradients&, int);
void ms_deform_attn(const Attention&, const AttentionTensors&, Array, int);
void ms_deform_attn_backward(const Attention&, const AttentionTensors&, Array, const AttentionGradients&, int);
void deform_aggregate(const Aggregation&, const AttentionTensors&, Array, int);
void deform_aggregate_backward(const Aggregation&, const AttentionTensors&, Array, const AttentionGradients&, int);

extern const Kernels kernels = {
    PLIANT_NAME(PLIANT_ISA), deform_conv2d,  deform_conv2d_backward,  roi_pool,
    roi_pool_backward,       ms_deform_attn, ms_deform_attn_backward, deform_aggregate,
    deform_aggregate_backward,
};

}  // namespace PLIANT_ISA
}  // namespace pliant
