#!/bin/sh
# Trains the Focused Transformer of models/, measures it, and writes its files.
#
#   tools/fot/make.sh OUT LOCI      OUT: a directory; LOCI: the loci command, which quantises
#
# Goes on where an interrupted training stopped. NAME=loci-fot-1m unless set; TRAIN and EVALUATE are further options of the two programs.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
out=$1 loci=$2 name=${NAME:-loci-fot-1m}
mkdir -p "$out"
if [ ! -x "$out/python/bin/python3" ]; then
    python3 -m venv "$out/python"
    "$out/python/bin/pip" install -q --disable-pip-version-check -r "$here/requirements.txt"
fi
python=$out/python/bin/python3
# Large arrays come and go at every step: the C library shall keep their pages, and ask for large ones (a fifth less time a step).
export GLIBC_TUNABLES=glibc.malloc.hugetlb=1 MALLOC_MMAP_THRESHOLD_=8000000000 MALLOC_TRIM_THRESHOLD_=16000000000 MALLOC_TOP_PAD_=268435456
resume=
[ -f "$out/run/state.pkl" ] && resume=--resume
# shellcheck disable=SC2086 # lists of words
"$python" "$here/train.py" "$out/run" $resume ${TRAIN:-}
"$python" "$here/export.py" "$out/run/parameters.npz" "$out/$name.F32.gguf" --name "$name"
for type in F16 Q8_0 Q4_0; do
    "$loci" quantize --force "$out/$name.F32.gguf" "$out/$name.$type.gguf" $type
done
rm -f "$out/accuracy.jsonl"
# shellcheck disable=SC2086
"$python" "$here/evaluate.py" "$out/run/parameters.npz" --out "$out/accuracy.jsonl" ${EVALUATE:-}
