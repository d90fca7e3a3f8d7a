# shellcheck shell=bash
# For scripts that build for another machine (sourced by them): a Rust compiler that has the target's standard library.
#
#   . tools/cross/rust.sh          $home, say, fail, retry, install, rust_for
#   rust_for TARGET                sets RUSTC and RUSTDOC: the rustc in use where it has the target (`rustup target add TARGET`), else
#                                  Debian's, with the standard library from Debian too or built from its source (a minute, once)
#
# Debian's is the compiler that it keeps current for browsers (rustc-web). Its packages are unpacked in LOCI_CROSS (default
# ~/.cache/loci/cross), not installed: the Rust in use stays as it is.
home=${LOCI_CROSS:-${XDG_CACHE_HOME:-$HOME/.cache}/loci/cross}
sudo=
[ "$(id -u)" -eq 0 ] || sudo=sudo
export DEBIAN_FRONTEND=noninteractive

say() { echo "cross: $*" >&2; }
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
# has_target RUSTC TARGET: whether it has the target's standard library.
has_target() {
    local dir
    dir=$("$1" --print target-libdir --target "$2" 2> /dev/null) && compgen -G "$dir/libstd-*.rlib" > /dev/null
}
# download PACKAGE=VERSION...: unpacks them in $home.
download() {
    local dir status=0
    say "unpacking $* in $home"
    dir=$(mktemp -d)
    (cd "$dir" && retry apt-get -o APT::Sandbox::User=root download -qq "$@") || status=1
    [ $status -ne 0 ] || for package in "$dir"/*.deb; do dpkg -x "$package" "$home"; done
    rm -r "$dir"
    return $status
}

unpack_compiler() {
    command -v apt-get > /dev/null || return 1
    # Only so that apt can download a package of that architecture; nothing of it is installed.
    dpkg --print-foreign-architectures | grep -qx arm64 || $sudo dpkg --add-architecture arm64
    retry $sudo apt-get update -qq > /dev/null || say "apt-get update failed; trying with the package lists that are there"
    # Compiler, both libraries and source must be of one version; while a mirror is being brought up to date the architectures may differ.
    local version series llvm
    version=$(comm -12 <(apt-cache madison rustc-web | awk '{ print $3 }' | sort -u) \
        <(apt-cache madison libstd-rust-web-dev:arm64 | awk '{ print $3 }' | sort -u) | sort -V | tail -n 1)
    [ -n "$version" ] || fail "no version of rustc-web is there for both amd64 and arm64"
    series=$(echo "$version" | cut -d. -f1,2)
    llvm=$(apt-cache show "libstd-rust-web-$series=$version" | grep -o 'libllvm[0-9]*' | head -n 1)
    [ -z "$llvm" ] || dpkg -s "$llvm" > /dev/null 2>&1 || install "$llvm"
    rm -rf "$home"
    mkdir -p "$home/bin"
    download "rustc-web=$version" "libstd-rust-web-$series=$version" "libstd-rust-web-dev=$version" "libstd-rust-web-dev:arm64=$version" ||
        fail "could not download rustc-web $version"
    # They expect their libraries in the system's directories.
    for tool in rustc rustdoc; do
        cat > "$home/bin/$tool" << END
#!/bin/sh
LD_LIBRARY_PATH=$home/usr/lib/x86_64-linux-gnu\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH} exec $home/usr/bin/$tool "\$@"
END
        chmod +x "$home/bin/$tool"
    done
    echo "$version" > "$home/version"
}

have_compiler() {
    [ -e "$home/version" ] && "$home/bin/rustc" -V > /dev/null 2>&1
}

# The compiler and the source of its standard library.
unpack_source() {
    have_compiler || unpack_compiler || fail "no compiler of Debian's to be had"
    [ ! -e "$home/usr/lib/rustlib/src/rust/library" ] || return 0
    download "rust-web-src=$(cat "$home/version")" || {
        # The package index has moved on to another version.
        unpack_compiler
        download "rust-web-src=$(cat "$home/version")" || fail "could not download the standard library's source"
    }
    mkdir -p "$home/usr/lib/rustlib/src"
    ln -sfn "$(ls -d "$home"/usr/src/rustc-*)" "$home/usr/lib/rustlib/src/rust"
}

# Builds the standard library for a target and puts it where the compiler looks: from then on `cargo build --target` works with no flag.
build_std() {
    local target=$1 work lib
    unpack_source
    say "building the standard library for $target (a minute, once)"
    work=$(mktemp -d)
    mkdir "$work/src"
    echo '#![no_std]' > "$work/src/lib.rs"
    cat > "$work/Cargo.toml" << 'END'
[package]
name = "nothing"
version = "0.0.0"
edition = "2021"

[profile.release]
codegen-units = 4
END
    # panic_abort has to be compiled for aborting, the rest for unwinding.
    cat > "$work/wrapper" << 'END'
#!/bin/sh
case " $* " in
    *" --crate-name panic_abort "*) exec "$@" -Cpanic=abort ;;
    *) exec "$@" ;;
esac
END
    chmod +x "$work/wrapper"
    # With bitcode, so that link-time optimisation reaches into it.
    (cd "$work" && unset CARGO_TARGET_DIR && RUSTC="$home/bin/rustc" RUSTC_BOOTSTRAP=1 RUSTC_WRAPPER="$work/wrapper" \
        RUSTFLAGS="-Cembed-bitcode=yes" cargo build -q --release --target "$target" -Zbuild-std=std,test,panic_abort,panic_unwind >&2) ||
        fail "the standard library did not build for $target"
    lib=$home/usr/lib/rustlib/$target/lib
    rm -rf "$lib"
    mkdir -p "$lib.new"
    find "$work/target/$target/release/deps" -name '*.rlib' ! -name 'libnothing*' -exec cp {} "$lib.new/" \;
    mv "$lib.new" "$lib"
    rm -r "$work"
}

rust_for() {
    if has_target "${RUSTC:-rustc}" "$1"; then
        RUSTC=${RUSTC:-rustc} RUSTDOC=${RUSTDOC:-rustdoc}
        return
    fi
    [ "$(uname -sm)" = "Linux x86_64" ] || fail "this rustc cannot build for $1: run  rustup target add $1"
    if ! have_compiler; then
        unpack_compiler || fail "this rustc cannot build for $1: run  rustup target add $1"
    fi
    has_target "$home/bin/rustc" "$1" || build_std "$1"
    RUSTC=$home/bin/rustc RUSTDOC=$home/bin/rustdoc
}
