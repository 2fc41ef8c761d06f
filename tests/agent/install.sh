#!/bin/sh
# cmake --install into a place that the build knows nothing of, and then what a newcomer does: builds
# a program with pkg-config's flags and runs it, and the two programs that came along.
set -eu
build=$1 cc=$2 libdir=$3 source=$4
command -v pkg-config > /dev/null || {
	echo "skipped: no pkg-config"
	exit 77
}
unset DESTDIR LD_LIBRARY_PATH
dir=$(mktemp -d "${TMPDIR:-/tmp}/strew-install-XXXXXX")
trap 'rm -rf "$dir"' EXIT
cmake --install "$build" --prefix "$dir/first" > /dev/null
mv "$dir/first" "$dir/moved"
export PKG_CONFIG_PATH="$dir/moved/$libdir/pkgconfig"
# shellcheck disable=SC2046 # the flags are words
"$cc" -Wall -Werror $(pkg-config --dont-define-prefix --cflags strew) -o "$dir/smallest" "$source" \
	$(pkg-config --dont-define-prefix --libs strew)
LD_LIBRARY_PATH="$dir/moved/$libdir" "$dir/smallest"
"$dir/moved/bin/strew" --version
"$dir/moved/bin/strewd" --version
for other in strew-bench tp_worker trainer; do
	if [ -e "$dir/moved/bin/$other" ]; then
		echo "$other was installed too" >&2
		exit 1
	fi
done
