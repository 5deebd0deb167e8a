# Sourced by `run` and `fuzz`: compiles the kernels for the instruction sets of the compiler's target, side by side.
# compile_kernels COMPILER OPTION... compiles every set, and with only=SET that one, which then serves alone.
# Scratch is small here, so that small problems take the paths of large ones, and the tiles of AMX are emulated.
# Objects are numbered, the simplest set first: where several define the same function of the standard library, the linker
# keeps the first, and every processor must be able to run it.

avx512="-mavx512f -mavx512dq -mavx512bw -mavx512vl -mfma -mf16c"
declare -A options_of=([generic]="" [avx2]="-mavx2 -mfma -mf16c" [avx512]="$avx512"
    [avx512_bf16]="$avx512 -mavx512bf16" [amx_bf16]="$avx512 -mavx512bf16 -DPLIANT_TILES" [neon]="")

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
    local sets=(generic avx2 avx512 avx512_bf16 amx_bf16) number=0
    case $($1 -dumpmachine) in
        aarch64* | arm64*) sets=(neon) ;;
    esac
    for set in ${only:-"${sets[@]}"}; do
        number=$((number + 1))
        for source in deform_conv2d_backward roi_pool deform_conv2d_forward ms_deform_attn deform_aggregate instruction_set; do
            echo "$small ${*:2} ${options_of[$set]} -DPLIANT_ISA=$set -c $here/../$source.cpp -o $number-$set-$source.o"
        done
    done | xargs -P "$(nproc)" -L 1 $1
}
