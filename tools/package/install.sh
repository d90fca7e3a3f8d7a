#!/bin/sh
# Lays out what `make install` installs: headers, shared and static library, pkg-config file, CMake package.
#
#   tools/package/install.sh BUILT VERSION PREFIX [DESTDIR]
#
# BUILT is the directory with cargo's libloci.so and libloci.a. LIBDIR (default lib) is where libraries go under PREFIX; CROSS is passed on
# to archive.sh. Nothing that is installed names the machine that built it: PREFIX may be moved afterwards.
set -eu
cd "$(dirname "$0")/../.."
built=$1
version=$2
prefix=$3
root=${4:-}$prefix
libdir=${LIBDIR:-lib}
major=${version%%.*}

install -d "$root/include" "$root/$libdir/pkgconfig" "$root/$libdir/cmake/loci"
install -m 644 include/loci.h include/loci.hpp "$root/include/"
tools/archive.sh "$built/libloci.a" "$root/$libdir/libloci.a"
chmod 644 "$root/$libdir/libloci.a"
install -m 755 "$built/libloci.so" "$root/$libdir/libloci.so.$version"
"${STRIP:-${CROSS:-}strip}" --strip-unneeded "$root/$libdir/libloci.so.$version"
ln -sf "libloci.so.$version" "$root/$libdir/libloci.so.$major"
ln -sf "libloci.so.$major" "$root/$libdir/libloci.so"

depth=$(printf %s "$libdir" | tr -cd / | wc -c)
up=../..
while [ "$depth" -gt 0 ]; do
    up=$up/..
    depth=$((depth - 1))
done
fill() { sed -e "s,@VERSION@,$version,g" -e "s,@LIBDIR@,$libdir,g" -e "s,@UP@,$up,g" -e "s,@MAJOR@,$major,g" "tools/package/$1" > "$2"; }
fill loci.pc.in "$root/$libdir/pkgconfig/loci.pc"
fill lociConfig.cmake.in "$root/$libdir/cmake/loci/lociConfig.cmake"
fill lociConfigVersion.cmake.in "$root/$libdir/cmake/loci/lociConfigVersion.cmake"
