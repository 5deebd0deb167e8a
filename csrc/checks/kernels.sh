# Sourced by `run` and `fuzz`: compiles the kernels once for each instruction set of the compiler's target, side by side.
# compile_kernels COMPILER OPTION...
# Scratch is small here, so that small problems take the paths of large ones, and the tiles of AMX are emulated.

avx512="-mavx512f -mavx512dq -mavx512bw -mavx512vl -mfma -mf16c"
declare -A x86=([generic]="" [avx2]="-mavx2 -mfma -mf16c" [avx512]="$avx512" [avx512_bf16]="$avx512 -mavx512bf16"
    [amx_bf16]="$avx512 -mavx512bf16 -DPLIANT_TILES")
declare -A arm=([neon]="")

small="-std=c++17 -g -DPLIANT_SCRATCH_BYTES=16384 -DPLIANT_EMULATED_TILES"

compile_kernels() {
    case $($1 -dumpmachine) in
        aarch64* | arm64*) declare -n sets=arm ;;
        *) declare -n sets=x86 ;;
    esac
    for set in "${!sets[@]}"; do
        for source in deform_conv2d_forward deform_conv2d_backward roi_pool ms_deform_attn deform_aggregate instruction_set; do
            echo "$small ${*:2} ${sets[$set]} -DPLIANT_ISA=$set -c $here/../$source.cpp -o $set-$source.o"
        done
    done | xargs -P "$(nproc)" -L 1 $1
}
