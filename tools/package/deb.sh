#!/bin/sh
# Makes two Debian packages of an installed tree: the shared library (libloci0) and what programs are built with (libloci-dev).
#
#   tools/package/deb.sh BUILT VERSION OUT_DIR [ARCHITECTURE]
#
# BUILT is the directory with cargo's libloci.so and libloci.a, ARCHITECTURE Debian's name of theirs (default: this machine's). Prints the
# paths of the packages.
set -eu
cd "$(dirname "$0")/../.."
built=$1
version=$2
out=$3
architecture=${4:-$(dpkg --print-architecture)}
case $architecture in
    amd64) multiarch=x86_64-linux-gnu ;;
    arm64) multiarch=aarch64-linux-gnu ;;
    armhf) multiarch=arm-linux-gnueabihf ;;
    *)
        echo "deb.sh: no library directory known for $architecture" >&2
        exit 1
        ;;
esac
major=${version%%.*}
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
umask 022
LIBDIR=lib/$multiarch tools/package/install.sh "$built" "$version" /usr "$dir/all"
libs=usr/lib/$multiarch

# The oldest C library that has every symbol version asked for.
libc=$("${OBJDUMP:-${CROSS:-}objdump}" -T "$dir/all/$libs/libloci.so.$version" | grep -o 'GLIBC_[0-9.]*' | sed 's/GLIBC_//' | sort -Vu | tail -n 1)

# package NAME SECTION DEPENDS SUMMARY DESCRIPTION: packs $dir/NAME.
package() {
    install -d "$dir/$1/usr/share/doc/$1" "$dir/$1/DEBIAN"
    cat LICENSE-MIT > "$dir/$1/usr/share/doc/$1/copyright"
    printf '\nAlternatively, at your choice:\n\n' >> "$dir/$1/usr/share/doc/$1/copyright"
    cat LICENSE-APACHE >> "$dir/$1/usr/share/doc/$1/copyright"
    size=$(du -sk --exclude=DEBIAN "$dir/$1" | cut -f 1)
    cat > "$dir/$1/DEBIAN/control" << EOF
Package: $1
Version: $version
Architecture: $architecture
Multi-Arch: same
Section: $2
Priority: optional
Maintainer: The loci developers <loci@localhost>
Installed-Size: $size
Depends: $3
Description: $4
 $5
EOF
    (cd "$dir/$1" && find usr -type f -exec md5sum {} + > DEBIAN/md5sums)
    file=$out/$1_${version}_$architecture.deb
    dpkg-deb --root-owner-group --build "$dir/$1" "$file" > /dev/null
    echo "$file"
}

install -d "$out" "$dir/libloci$major/$libs" "$dir/libloci-dev/$libs" "$dir/libloci-dev/usr"
mv "$dir/all/$libs/libloci.so.$version" "$dir/all/$libs/libloci.so.$major" "$dir/libloci$major/$libs/"
install -d "$dir/libloci$major/DEBIAN"
printf 'activate-noawait ldconfig\n' > "$dir/libloci$major/DEBIAN/triggers"
printf 'libloci %s libloci%s (>= %s)\n' "$major" "$major" "$version" > "$dir/libloci$major/DEBIAN/shlibs"
package "libloci$major" libs "libc6 (>= $libc), libgcc-s1" "language models on CPUs with a memory on disk" \
    "Reads GGUF models, and keeps what they have read in a file. This is the shared library."
mv "$dir/all/usr/include" "$dir/libloci-dev/usr/"
mv "$dir/all/$libs/"* "$dir/libloci-dev/$libs/"
package libloci-dev libdevel "libloci$major (= $version)" "language models on CPUs with a memory on disk, for development" \
    "Headers, static library, pkg-config file and CMake package of loci."
