"""The authors' networks in MXNet 1.9.1, layer by layer, as a process of its own: random weights, and what they give.

MXNet needs an environment of its own; `tests/ops/mxnet_operators.py` says how to make one::

    mxnet/bin/python tests/importers/mxnet_networks.py rfcn image.npy out.params results.npz

The image is `[3, H, W]`, RGB, 0..255 minus the mean. The weights are written by MXNet.
"""

import sys

import mxnet
import numpy
from mxnet import nd

GROUPS = {"rfcn": 4, "faster_rcnn": 4, "faster_rcnn_plain": 0, "deeplab": 1}
CLASSES = {"rfcn": 21, "faster_rcnn": 21, "faster_rcnn_plain": 21, "deeplab": 19}
POOL = {"spatial_scale": 0.0625, "pooled_size": 7, "part_size": 7, "sample_per_part": 4}


class Network:
    """Layers that make their weights when they first run."""

    def __init__(self, kind):
        self.kind = kind
        self.rng = numpy.random.RandomState(3)
        self.arrays = {}

    def array(self, name, values):
        self.arrays[name] = nd.array(values, dtype="float32")
        return self.arrays[name]

    def weight(self, name, shape, scale=1.0):
        fan = numpy.prod(shape[1:])
        return self.array(f"arg:{name}_weight", self.rng.randn(*shape) * scale * (2.0 / fan) ** 0.5)

    def bias(self, name, size):
        return self.array(f"arg:{name}_bias", self.rng.randn(size) * 0.1)

    def conv(self, x, name, filters, kernel=1, stride=1, dilate=1, bias=False, scale=1.0):
        pad = dilate * (kernel - 1) // 2
        given = [self.weight(name, (filters, x.shape[1], kernel, kernel), scale)]
        given += [self.bias(name, filters)] if bias else []
        options = {"kernel": (kernel,) * 2, "stride": (stride,) * 2, "dilate": (dilate,) * 2, "pad": (pad,) * 2}
        return nd.Convolution(x, *given, num_filter=filters, no_bias=not bias, **options)

    def norm(self, x, name, scale=1.0):
        size = x.shape[1]
        gamma = self.array(f"arg:{name}_gamma", self.rng.uniform(0.8, 1.2, size) * scale)
        beta = self.array(f"arg:{name}_beta", self.rng.randn(size) * 0.1)
        mean = self.array(f"aux:{name}_moving_mean", self.rng.randn(size) * 0.1)
        var = self.array(f"aux:{name}_moving_var", self.rng.uniform(0.8, 1.2, size))
        return nd.BatchNorm(x, gamma, beta, mean, var, eps=1e-5, fix_gamma=False, use_global_stats=True)

    def dense(self, x, name, size, scale=1.0):
        weight = self.weight(name, (size, int(numpy.prod(x.shape[1:]))), scale)
        return nd.FullyConnected(x, weight, self.bias(name, size), num_hidden=size)

    def block(self, x, name, width, stride, project, conv5):
        """A bottleneck, its stride on the first 1x1 convolutions."""
        y = nd.relu(self.norm(self.conv(x, f"res{name}_branch2a", width, stride=stride), f"bn{name}_branch2a"))
        groups = GROUPS[self.kind] if conv5 else 0
        if groups:
            # One group: without dilation.
            dilate = 1 if groups == 1 else 2
            layer = f"res{name}_branch2b"
            offset = self.conv(y, f"{layer}_offset", 18 * groups, 3, dilate=dilate, bias=True, scale=0.5)
            options = {"kernel": (3, 3), "pad": (2, 2), "dilate": (2, 2), "num_deformable_group": groups}
            weight = self.weight(layer, (width, width, 3, 3))
            y = nd.contrib.DeformableConvolution(y, offset, weight, num_filter=width, no_bias=True, **options)
        else:
            y = self.conv(y, f"res{name}_branch2b", width, 3, dilate=2 if conv5 else 1)
        y = nd.relu(self.norm(y, f"bn{name}_branch2b"))
        y = self.norm(self.conv(y, f"res{name}_branch2c", 4 * width), f"bn{name}_branch2c", scale=0.2)
        if project:
            x = self.norm(self.conv(x, f"res{name}_branch1", 4 * width, stride=stride), f"bn{name}_branch1")
        return nd.relu(x + y)

    def resnet(self, x):
        x = nd.relu(self.norm(self.conv(x, "conv1", 64, 7, stride=2, scale=0.02), "bn_conv1"))
        x = nd.Pooling(x, kernel=(3, 3), stride=(2, 2), pool_type="max", pooling_convention="full")
        maps = []
        for stage, count in ((2, 3), (3, 4), (4, 23), (5, 3)):
            letters = ["a", "b", "c"] if count == 3 else ["a"] + [f"b{i}" for i in range(1, count)]
            for place, letter in enumerate(letters):
                stride = 2 if place == 0 and stage in (3, 4) else 1
                x = self.block(x, f"{stage}{letter}", 64 * 2 ** (stage - 2), stride, place == 0, stage == 5)
            maps.append(x)
        return maps[2], maps[3]

    def proposals(self, conv4, size):
        x = nd.relu(self.conv(conv4, "rpn_conv_3x3", 512, 3, bias=True))
        scores = self.conv(x, "rpn_cls_score", 18, bias=True, scale=0.1)
        deltas = self.conv(x, "rpn_bbox_pred", 36, bias=True, scale=0.1)
        prob = nd.softmax(scores.reshape((1, 2, -1, 0)), axis=1).reshape((1, 18, -1, conv4.shape[3]))
        options = {"rpn_pre_nms_top_n": 6000, "rpn_post_nms_top_n": 300, "threshold": 0.7, "rpn_min_size": 0}
        anchors = {"feature_stride": 16, "scales": (8, 16, 32), "ratios": (0.5, 1, 2)}
        return nd.contrib.Proposal(prob, deltas, nd.array([[*size, 1.0]]), **options, **anchors)

    def rfcn(self, conv5, rois):
        classes = CLASSES[self.kind]
        pool = nd.contrib.DeformablePSROIPooling
        x = nd.relu(self.conv(conv5, "conv_new_1", 1024, bias=True))
        options = {"group_size": 7, **POOL}
        outputs = []
        for name, size, moved in (("cls", classes, 2 * classes), ("bbox", 8, 2)):
            maps = self.conv(x, f"rfcn_{name}", 49 * size, bias=True)
            fields = self.conv(x, f"rfcn_{name}_offset_t", 49 * moved, bias=True)
            offset = pool(fields, rois, no_trans=True, output_dim=moved, **options)
            bins = pool(maps, rois, offset, no_trans=False, trans_std=0.1, output_dim=size, **options)
            outputs.append(bins.mean(axis=(2, 3)))
        return outputs

    def faster_rcnn(self, conv5, rois):
        pool = nd.contrib.DeformablePSROIPooling
        x = nd.relu(self.conv(conv5, "conv_new_1", 256, bias=True))
        if GROUPS[self.kind]:
            options = {"group_size": 1, "output_dim": 256, **POOL}
            offset = self.dense(pool(x, rois, no_trans=True, **options), "offset", 98, scale=0.3)
            offset = offset.reshape((-1, 2, 7, 7))
            x = pool(x, rois, offset, no_trans=False, trans_std=0.1, **options)
        else:
            x = nd.ROIPooling(x, rois, pooled_size=(7, 7), spatial_scale=0.0625)
        x = nd.relu(self.dense(x, "fc_new_1", 1024))
        x = nd.relu(self.dense(x, "fc_new_2", 1024))
        return self.dense(x, "cls_score", CLASSES[self.kind]), self.dense(x, "bbox_pred", 4 * CLASSES[self.kind])

    def deeplab(self, conv5, size):
        classes = CLASSES[self.kind]
        x = nd.relu(self.conv(conv5, "fc6", 1024, bias=True))
        x = self.conv(x, "score", classes, bias=True)
        line = 1 - numpy.abs(numpy.arange(32) + 0.5 - 16) / 16
        weight = self.array("arg:upsampling_weight", numpy.broadcast_to(numpy.outer(line, line), (classes, 1, 32, 32)))
        options = {"kernel": (32, 32), "stride": (16, 16), "num_filter": classes, "num_group": classes}
        x = nd.Deconvolution(x, weight, no_bias=True, **options)
        return x[:, :, 8 : 8 + size[0], 8 : 8 + size[1]]


def main(kind, source, weights, target):
    image = nd.array(numpy.load(source))[None]
    size = image.shape[2:]
    network = Network(kind)
    conv4, conv5 = network.resnet(image)
    results = {"conv4": conv4, "conv5": conv5}
    if kind == "deeplab":
        results["out"] = network.deeplab(conv5, size)
    else:
        results["rois"] = network.proposals(conv4, size)
        head = network.rfcn if kind == "rfcn" else network.faster_rcnn
        results["scores"], results["boxes"] = head(conv5, results["rois"])
    mxnet.nd.save(weights, network.arrays)
    numpy.savez(target, **{name: value.asnumpy() for name, value in results.items()})


if __name__ == "__main__":
    main(*sys.argv[1:])
