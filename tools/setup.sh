#!/bin/sh
# Makes sure that the named commands are there, and installs what is missing with apt where that is allowed.
#
#   tools/setup.sh cc c++ pip unzip valgrind numpy
#
# Without root or passwordless sudo it says exactly what to install, and fails.
set -u

# The Debian package of a command.
package_of() {
    case $1 in
        cc) echo gcc libc6-dev ;;
        c++) echo g++ ;;
        pip) echo python3-pip ;;
        numpy) echo python3-numpy ;;
        abidiff) echo abigail-tools ;;
        javac) echo default-jdk-headless ;;
        swift) echo swiftlang ;;
        *) echo "$1" ;;
    esac
}

found() {
    case $1 in
        pip) python3 -m pip --version > /dev/null 2>&1 || command -v pip3 > /dev/null 2>&1 || command -v pip > /dev/null 2>&1 ;;
        # The converter's tests look for it in these two places.
        numpy) python3 -c 'import numpy' > /dev/null 2>&1 || build/python/bin/python3 -c 'import numpy' > /dev/null 2>&1 ;;
        cargo) command -v cargo > /dev/null 2>&1 ;;
        # A compiler without the C library's headers is of no use.
        cc) printf '#include <stdio.h>\nint main(void){return 0;}\n' | cc -x c - -o /dev/null 2> /dev/null ;;
        c++) printf '#include <string>\nint main(){return 0;}\n' | c++ -x c++ - -o /dev/null 2> /dev/null ;;
        *) command -v "$1" > /dev/null 2>&1 ;;
    esac
}

cd "$(dirname "$0")/.." || exit 1
packages=
for command in "$@"; do
    found "$command" && continue
    # A Python that is not the system's does not see the system's packages: it gets a place of its own for this one.
    if [ "$command" = numpy ] && python3 -m venv build/python > /dev/null 2>&1; then
        echo "setup: installing numpy into build/python"
        build/python/bin/pip install -q --disable-pip-version-check numpy > /dev/null 2>&1
        found numpy && continue
    fi
    if [ "$command" = cargo ]; then
        echo "setup: cargo is missing: install Rust (rustup, or your distribution's cargo), then open a new shell" >&2
        exit 1
    fi
    packages="$packages $(package_of "$command")"
done
[ -z "$packages" ] && exit 0

if ! command -v apt-get > /dev/null 2>&1; then
    echo "setup: missing on this machine, in Debian's names:$packages" >&2
    exit 1
fi
sudo=
if [ "$(id -u)" -ne 0 ]; then
    if sudo -n true 2> /dev/null; then
        sudo=sudo
    else
        echo "setup: missing packages, and no right to install them. Run:" >&2
        echo "    sudo apt-get update && sudo apt-get install -y --no-install-recommends$packages" >&2
        exit 1
    fi
fi
echo "setup: installing$packages"
export DEBIAN_FRONTEND=noninteractive
$sudo apt-get update -q > /dev/null || echo "setup: apt-get update failed; trying with the package lists that are there" >&2
# shellcheck disable=SC2086 # a list of words
$sudo apt-get install -y -q --no-install-recommends $packages > /dev/null || {
    echo "setup: could not install$packages" >&2
    exit 1
}
for command in "$@"; do
    found "$command" || {
        echo "setup: $command is still missing after installing$packages" >&2
        exit 1
    }
done
