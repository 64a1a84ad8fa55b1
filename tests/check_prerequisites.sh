#!/bin/sh
# Says what this machine lacks for a build, and the command that installs it. Silent if nothing is missing.
# usage: check_prerequisites.sh [PYTHON]      (CC and CXX as for the build; the defaults are PYTHON's own)
set -u

python=${1:-python3}
problems=
packages=

lacks() { # lacks DESCRIPTION PACKAGE…
    problems="$problems  - $1
"
    shift
    packages="$packages $*"
}

[ "$(uname -s)" = Linux ] || { echo "gpu-provider needs Linux (memfd, eventfd); this is $(uname -s)." >&2; exit 1; }

if ! command -v "$python" >/dev/null 2>&1; then
    lacks "Python 3.11 or later: no '$python' on the PATH" python3 python3-venv python3-dev
    cc=${CC:-gcc}
else
    version=$("$python" -c 'import platform; print(platform.python_version())')
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
        echo "gpu-provider needs Python 3.11 or later; '$python' is $version." >&2
        echo "Name another one: make PYTHON=python3.11" >&2
        exit 1
    fi
    "$python" -c 'import ensurepip, venv' 2>/dev/null || lacks "the venv module of $python $version" python3-venv
    headers=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
    [ -f "$headers/Python.h" ] || lacks "the headers of $python $version: no $headers/Python.h" python3-dev
    cc=${CC:-$("$python" -c 'import sysconfig; print(sysconfig.get_config_var("CC") or "gcc")')}
fi

scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT

compiles() { # compiles LIBRARY… <SOURCE; $cc unquoted: it may carry flags
    $cc -x c - -o "$scratch/a.out" "$@" 2>"$scratch/log"
}

if ! command -v ${cc%% *} >/dev/null 2>&1; then
    lacks "a C compiler: no '${cc%% *}' on the PATH" gcc libc6-dev
    # Without a compiler, look in the usual place; with one, below, wherever it searches.
    [ -f /usr/include/openssl/ssl.h ] || lacks "the headers and libraries of OpenSSL" libssl-dev
elif ! echo '#include <stdio.h>
int main(void) { return 0; }' | compiles; then
    lacks "the C library's headers: '$cc' cannot compile and link an empty program" libc6-dev
elif ! echo '#include <openssl/ssl.h>
int main(void) { return 0; }' | compiles -lssl -lcrypto; then
    lacks "the headers and libraries of OpenSSL" libssl-dev
elif ! echo '#include <openssl/opensslv.h>
#if OPENSSL_VERSION_MAJOR < 3
#error
#endif
int main(void) { return 0; }' | compiles; then
    lacks "OpenSSL 3.0 or later: the installed headers are older" libssl-dev
fi

cxx=${CXX:-$("$python" -c 'import sysconfig; print(sysconfig.get_config_var("CXX") or "g++")' 2>/dev/null || echo g++)}
command -v ${cxx%% *} >/dev/null 2>&1 || lacks "a C++ compiler: no '${cxx%% *}' on the PATH" g++

[ -z "$problems" ] && exit 0
printf 'gpu-provider cannot be built here. Missing:\n%s' "$problems" >&2
printf 'On Debian and Ubuntu: apt-get install%s\n' "$packages" >&2
exit 1
