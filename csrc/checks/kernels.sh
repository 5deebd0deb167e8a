# Sourced by `run` and `fuzz`: compiles the kernels for the instruction sets of the compiler's target, side by side.
# compile_kernels COMPILER OPTION... compiles every set, and with only=SET that one, which then serves alone.
# Scratch is small here, so that small problems take the paths of large ones, and the tiles of AMX are emulated.

avx512="-mavx512f -mavx512dq -mavx512bw -mavx512vl -mfma -mf16c"
declare -A x86=([generic]="" [avx2]="-mavx2 -mfma -mf16c" [avx512]="$avx512" [avx512_bf16]="$avx512 -mavx512bf16"
    [amx_bf16]="$avx512 -mavx512bf16 -DPLIANT_TILES")
declare -A arm=([neon]="")

small="-std=c++17 -g -DPLIANT_SCRATCH_BYTES=16384 -DPLIANT_EMULATED_TILES"

# The set with the widest vectors that this processor runs: those reach farthest beyond the last channel.
widest_set() {
    local has
    has=$(grep -m 1 -E '^(flags|Features)' /proc/cpuinfo || true)
    case "$(uname -m) $has " in
        x86_64*" avx512vl "*) echo avx512 ;;
        x86_64*" avx2 "*) echo avx2 ;;
        aarch64*) echo neon ;;
        *) echo generic ;;
    esac
}

compile_kernels() {
    case $($1 -dumpmachine) in
        aarch64* | arm64*) declare -n sets=arm ;;
        *) declare -n sets=x86 ;;
    esac
    for set in ${only:-"${!sets[@]}"}; do
        for source in deform_conv2d_backward roi_pool deform_conv2d_forward ms_deform_attn deform_aggregate instruction_set; do
            echo "$small ${*:2} ${sets[$set]} -DPLIANT_ISA=$set -c $here/../$source.cpp -o $set-$source.o"
        done
    done | xargs -P "$(nproc)" -L 1 $1
}
