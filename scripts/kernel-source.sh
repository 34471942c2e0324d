# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# shellcheck shell=bash
#
# What Debian's kernel was built by, and how its source is made ready to build
# Rust modules with. Debian's headers package lacks what Rust modules need, but
# the same source, configuration and compilers give the same symbols, so that a
# module built with such a tree loads into Debian's kernel.
#
# Sourced, never run: by scripts/kernel-tree, for the toolbox, and by the
# scripts of the package virtio-tmem-dkms, for the machine that they run on.

# The kernels that the module is made for, by their series: the `kernel` crate, and
# what is hooked, are others in those before.
# shellcheck disable=SC2034  # Used by the scripts that source this file.
made_for=7.3

# Debian's Rust tools by their paths, whatever else is in PATH or in the working
# directory.
# shellcheck disable=SC2034  # Used by the scripts that source this file.
rust_tools=(
	RUSTC=/usr/bin/rustc RUSTDOC=/usr/bin/rustdoc RUSTFMT=/usr/bin/rustfmt
	CLIPPY_DRIVER=/usr/bin/clippy-driver BINDGEN=/usr/bin/bindgen
)

# What of the kernel's build system modules need to have been built.
# shellcheck disable=SC2034
prepare_targets=(prepare modules_prepare)

# config_text CONFIG NAME: the text that CONFIG_NAME has in a configuration.
config_text() {
	sed -n "s/^CONFIG_$2=\"\(.*\)\"\$/\1/p" "$1"
}

# need_rustc KERNEL CONFIG FOUND: ends the script unless the kernel was built by the
# rustc that says this of its version. For scripts that have common.sh, too.
need_rustc() {
	local wanted
	wanted=$(config_text "$2" RUSTC_VERSION_TEXT)
	if [ "$wanted" != "$3" ]; then
		die "the kernel $1 was built by \"$wanted\", but the toolbox has \"$3\": its modules would not load" \
			"name another in KERNEL"
	fi
}

# c_compiler CONFIG: the C compiler of the kernel, by the name that it had then.
c_compiler() {
	config_text "$1" CC_VERSION_TEXT | sed 's/ .*//'
}

# series RELEASE: 7.3.4+deb13-cloud-amd64 -> 7.3
series() {
	printf '%s\n' "$1" | sed 's/^\([0-9]*\.[0-9]*\).*/\1/'
}

# source_archive FOLDER SERIES: the source of the kernels of a series, or nothing.
source_archive() {
	find "$1" -maxdepth 1 -name "linux-source-$2.tar.*" 2>/dev/null | sort | head -n 1
}

# lost_configuration WANTED CONFIG: the lines of a configuration that another one
# has not, and what that has though it is to be off.
lost_configuration() {
	grep '^CONFIG_' -- "$1" | grep -vxFf "$2" || true
	sed -n 's/^# \(CONFIG_[A-Z0-9_]*\) is not set$/^\1=/p' "$1" | grep -f - -- "$2" || true
}
