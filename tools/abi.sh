#!/bin/sh
# The ABI that include/loci.h promises, compared with the committed one by abidiff:
#
#   tools/abi.sh             what is there must be what was there: functions and fields may be added, nothing else may change
#   tools/abi.sh update      takes today's as the one to keep
#   tools/abi.sh describe HEADER.h OUT.abi
#
# The header alone is described, as a library of empty functions compiled with debugging information: that the real libraries are what
# the header says is what tests/c_abi.rs holds. Then breaks are planted in copies of the header, and each must be found.
set -eu
cd "$(dirname "$0")/.."
kept=tests/data/abi/loci-$(uname -m).abi
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT

# describe HEADER OUT
describe() {
    mkdir -p "$dir/include"
    cp "$1" "$dir/include/loci.h"
    {
        printf '#include "loci.h"\n#include <stdlib.h>\n'
        tools/exports.sh declarations "$1" | sed 's/$/ { abort(); }/'
    } > "$dir/stub.c"
    cc -g -Og -w -shared -fPIC -fno-eliminate-unused-debug-types "-ffile-prefix-map=$dir=." "-fdebug-prefix-map=$dir=." -I"$dir/include" \
        "$dir/stub.c" -Wl,-soname,libloci.so -o "$dir/libloci.so"
    abidw --no-corpus-path --no-comp-dir-path --no-show-locs --type-id-style hash "$dir/libloci.so" > "$2"
}

# compare OLD NEW: functions by abidiff; of structs, what OLD has must be the beginning of what NEW has (only those that carry their size
# may grow). abidiff's own rule for that lets other changes of the same struct pass.
compare() {
    printf '[suppress_type]\n  type_kind = struct\n  name_regexp = ^loci_\n' > "$dir/structs"
    abidiff --no-added-syms --suppressions "$dir/structs" "$1" "$2" || return 1
    python3 - "$1" "$2" << 'EOF'
import sys, xml.etree.ElementTree as xml

def structs(path):
    tree = xml.parse(path)
    names = {e.get("id"): e.get("name") for e in tree.iter() if e.get("id") and e.get("name")}
    def type_name(id):
        for e in tree.iter():
            if e.get("id") == id:
                return e.get("name") or f"{e.tag} to {type_name(e.get('type-id'))}" if e.get("type-id") else e.get("name") or e.tag
        return id
    return {s.get("name"): [(m.find("var-decl").get("name"), m.get("layout-offset-in-bits"), type_name(m.find("var-decl").get("type-id")))
                            for m in s.findall("data-member")]
            for s in tree.iter("class-decl") if s.get("is-declaration-only") != "yes" and s.get("name", "").startswith("loci_")}

old, new = structs(sys.argv[1]), structs(sys.argv[2])
failed = not old
for name, fields in old.items():
    now = new.get(name, [])
    grows = fields[:1] and fields[0][0] == "struct_size"
    if now[:len(fields)] != fields or (len(now) > len(fields) and not grows):
        was, is_ = next(((a, b) for a, b in zip(fields, now) if a != b), (fields[-1], now[-1] if now else None))
        print(f"struct {name}: expected {was}, found {is_}")
        failed = True
sys.exit(failed)
EOF
}

# planted NAME SED: the break must change the copy of the header, and be found.
planted() {
    sed "$2" include/loci.h > "$dir/broken.h"
    if cmp -s include/loci.h "$dir/broken.h"; then
        echo "abi.sh: the planted break '$1' changes nothing" >&2
        exit 1
    fi
    describe "$dir/broken.h" "$dir/broken.abi"
    if compare "$dir/now.abi" "$dir/broken.abi" > /dev/null 2>&1; then
        echo "abi.sh: the planted break '$1' was not found" >&2
        exit 1
    fi
    echo "found: $1"
}

case ${1:-check} in
    describe) describe "$2" "$3" ;;
    update)
        mkdir -p "$(dirname "$kept")"
        describe include/loci.h "$kept"
        echo "kept: $kept, $(wc -c < "$kept") bytes"
        ;;
    check)
        [ -f "$kept" ] || {
            echo "abi.sh: no $kept to compare with: the ABI was kept on another architecture" >&2
            exit 1
        }
        describe include/loci.h "$dir/now.abi"
        compare "$kept" "$dir/now.abi"
        planted "another type of a parameter" 's/loci_session_truncate(loci_session \*session, size_t length)/loci_session_truncate(loci_session *session, int32_t length)/'
        planted "a function taken away" '/^LOCI_API loci_status loci_session_reset(/d'
        planted "a field put between" 's/^    uint32_t batch;  .*/    uint64_t other; uint32_t batch;/'
        planted "a field of another size" 's/^    float temperature;  .*/    double temperature;/'
        planted "one parameter more" 's/loci_session_reset(loci_session \*session)/loci_session_reset(loci_session *session, int32_t how)/'
        planted "a field added to a struct without a size" 's/^} loci_alternative;/    int32_t more; } loci_alternative;/'
        planted "a field of another size and one more at the end" 's/^    float temperature;  .*/    double temperature;/; s/^} loci_sampler_options;/    uint64_t planted; } loci_sampler_options;/'
        echo "the ABI is that of $kept"
        ;;
    *)
        sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
        exit 2
        ;;
esac
