#!/usr/bin/env bash
# Makes sure that this x86-64 machine can build programs for AArch64 Linux and run them, and writes what cargo has to know to a
# file, whose name is the last line printed:
#
#   tools/aarch64/setup.sh [llvm]
#   . "$(tools/aarch64/setup.sh | tail -n 1)"
#   QEMU_CPU=cortex-a76 cargo test --release --target aarch64-unknown-linux-gnu
#
# What it takes: a C compiler and C library for AArch64 (they also link), qemu's user-mode emulator, and a Rust compiler with an
# AArch64 standard library; with `llvm` also llvm-objdump and llvm-mca of a release that models the cores. Commands that are there
# are used; what is missing comes from Debian's packages. Rust:
#   - the rustc in use, if it has the target (`rustup target add aarch64-unknown-linux-gnu`);
#   - else Debian's: the compiler that Debian keeps current for browsers (rustc-web) and its standard library, which is built for
#     arm64 too. The packages are unpacked in LOCI_AARCH64 (default ~/.cache/loci/aarch64), not installed: the Rust in use stays so.
set -euo pipefail
target=aarch64-unknown-linux-gnu
home=${LOCI_AARCH64:-${XDG_CACHE_HOME:-$HOME/.cache}/loci/aarch64}
sudo=
[ "$(id -u)" -eq 0 ] || sudo=sudo
export DEBIAN_FRONTEND=noninteractive

say() { echo "aarch64: $*" >&2; }
fail() {
    say "$*"
    exit 1
}
retry() {
    local try
    for try in 1 2 3; do
        "$@" && return 0
        say "try $try of 3 failed: $*"
        sleep $((try * 5))
    done
    return 1
}
# install PACKAGE...
install() {
    command -v apt-get > /dev/null || fail "missing on this machine, in Debian's names: $*"
    [ -z "$sudo" ] || sudo -n true 2> /dev/null || fail "no right to install: run  sudo apt-get install --no-install-recommends $*"
    say "installing $*"
    $sudo apt-get update -qq > /dev/null || say "apt-get update failed; trying with the package lists that are there"
    retry $sudo apt-get install -y -qq --no-install-recommends "$@" > /dev/null || fail "could not install $*"
}
# Runs the rustc of a prefix into which Debian's packages were unpacked.
unpacked() { [ -x "$home/bin/rustc" ] && "$home/bin/rustc" -V > /dev/null 2>&1; }
# has_target RUSTC: whether it has the target's standard library.
has_target() {
    local dir
    dir=$("$1" --print target-libdir --target $target 2> /dev/null) && compgen -G "$dir/libstd-*.rlib" > /dev/null
}

unpack_rust() {
    command -v apt-get > /dev/null || fail "this rustc has no $target: run  rustup target add $target"
    # Only so that apt can download a package of that architecture; nothing of it is installed.
    dpkg --print-foreign-architectures | grep -qx arm64 || $sudo dpkg --add-architecture arm64
    retry $sudo apt-get update -qq > /dev/null
    # Compiler and both libraries must be of one version; while a mirror is being brought up to date the architectures may differ.
    local version series llvm packages dir
    version=$(comm -12 <(apt-cache madison rustc-web | awk '{ print $3 }' | sort -u) \
        <(apt-cache madison libstd-rust-web-dev:arm64 | awk '{ print $3 }' | sort -u) | sort -V | tail -n 1)
    [ -n "$version" ] || fail "no version of rustc-web is there for both amd64 and arm64"
    series=$(echo "$version" | cut -d. -f1,2)
    llvm=$(apt-cache show "libstd-rust-web-$series=$version" | grep -o 'libllvm[0-9]*' | head -n 1)
    [ -z "$llvm" ] || dpkg -s "$llvm" > /dev/null 2>&1 || install "$llvm"
    packages=("rustc-web=$version" "libstd-rust-web-$series=$version" "libstd-rust-web-dev=$version" "libstd-rust-web-dev:arm64=$version")
    say "unpacking ${packages[*]} in $home"
    dir=$(mktemp -d)
    (cd "$dir" && retry apt-get -o APT::Sandbox::User=root download -qq "${packages[@]}")
    for package in "$dir"/*.deb; do dpkg -x "$package" "$home"; done
    rm -r "$dir"
    # They expect their libraries in the system's directories.
    mkdir -p "$home/bin"
    for tool in rustc rustdoc; do
        cat > "$home/bin/$tool" << END
#!/bin/sh
LD_LIBRARY_PATH=$home/usr/lib/x86_64-linux-gnu\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH} exec $home/usr/bin/$tool "\$@"
END
        chmod +x "$home/bin/$tool"
    done
}

[ "$(uname -sm)" = "Linux x86_64" ] || fail "this is $(uname -sm), not an x86-64 Linux: on the CPU itself use make test"
mkdir -p "$home"
packages=()
command -v aarch64-linux-gnu-gcc > /dev/null || packages+=(gcc-aarch64-linux-gnu)
command -v aarch64-linux-gnu-g++ > /dev/null || packages+=(g++-aarch64-linux-gnu)
[ -e /usr/aarch64-linux-gnu/include/stdio.h ] || packages+=(libc6-dev-arm64-cross)
command -v qemu-aarch64 > /dev/null || packages+=(qemu-user)
[ ${#packages[@]} -eq 0 ] || install "${packages[@]}"

# The models of the cores grow better with every LLVM: the newest that apt offers, and none before 19.
llvm=
if [ "${1:-}" = llvm ]; then
    newest() { sort -t- -k"$1" -n | tail -n 1; }
    [ -n "$(compgen -c llvm-mca- | grep -E '^llvm-mca-(19|[2-9][0-9])$')" ] || install "$(apt-cache search --names-only '^llvm-[0-9]+$' | cut -d' ' -f1 | newest 2)"
    llvm=$(compgen -c llvm-mca- | grep -E '^llvm-mca-[0-9]+$' | newest 3)
    llvm=${llvm#llvm-mca}
    [ "${llvm#-}" -ge 19 ] || fail "llvm-mca${llvm} is too old: its models of these cores are not of use"
fi

if has_target rustc; then
    rustc=rustc rustdoc=rustdoc
else
    unpacked || unpack_rust
    has_target "$home/bin/rustc" || fail "$home has no standard library of $target: remove the directory and try again"
    rustc=$home/bin/rustc rustdoc=$home/bin/rustdoc
fi

cat > "$home/env.new" << END
export RUSTC="$rustc" RUSTDOC="$rustdoc"
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -L /usr/aarch64-linux-gnu"
export CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc CXX_aarch64_unknown_linux_gnu=aarch64-linux-gnu-g++
export AR_aarch64_unknown_linux_gnu=aarch64-linux-gnu-ar
# Two compilers in one directory would build everything again and again.
export CARGO_TARGET_DIR="\${CARGO_TARGET_DIR:-target}/cross"
export LLVM_SUFFIX="$llvm"
END
mv "$home/env.new" "$home/env"
echo "$home/env"
