# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# shellcheck shell=bash
#
# apt with a state of its own, for another Debian than this machine's, by the
# mirror and the network that this machine's apt is configured with. Sourced by
# scripts/toolbox and scripts/deb-image, after scripts/common.sh; never run.
#
# Environment:
#   TMEM_MIRROR   a Debian mirror, instead of the one that apt is configured with

suite=trixie
backports=$suite-backports

# Packages of the toolbox that are taken from backports; all others come from the
# stable suite.
backported='qemu-system-* qemu-utils seabios ipxe-qemu libfdt1 libslirp0'

apt=$TMEM_CACHE/apt
debs=$TMEM_CACHE/debs
logs=$TMEM_CACHE/logs
keyrings=$apt/keyrings

# The configuration of apt on this machine that says how to reach the network
# (proxies, certificates, timeouts), for use with the private state below.
host_acquire() {
	apt-config dump |
		grep -E '^Acquire::((https?|ftp|tor|socks5h?)::|Check-|ForceIPv|Retries|Max-ValidTime|Min-ValidTime|Queue-Mode|Languages)' |
		grep -v '^Acquire::Languages' || true
}

# The base addresses of the Debian archive in the configuration of apt, in
# either of its two formats: apt itself reads them.
host_mirrors() {
	if [ -n "${TMEM_MIRROR:-}" ]; then
		printf '%s\n' "${TMEM_MIRROR%/}"
		return
	fi
	apt-get update --print-uris 2>/dev/null |
		sed -n "s,^'\(.*\)/dists/\([a-z]*\)/InRelease' .*,\1,p" |
		awk '!seen[$0]++'
}

setup_apt() {
	local file
	rm -rf -- "${apt:?}/etc" "$keyrings"
	mkdir -p -- "$apt/lists/partial" "$apt/etc/apt.conf.d" "$apt/etc/preferences.d" \
		"$apt/cache" "$keyrings"
	: >"$apt/status"

	# What this machine trusts for Debian's archive. See trust_mirror, too.
	for file in /usr/share/keyrings/debian-archive-keyring.gpg \
		/usr/share/keyrings/debian-archive-"$suite"-*.gpg \
		/etc/apt/trusted.gpg.d/*.gpg /etc/apt/trusted.gpg.d/*.asc; do
		if [ -s "$file" ]; then
			cp -L -- "$file" "$keyrings/"
		fi
	done

	cat >"$apt/network.conf" <<-END
		$(host_acquire)
		Acquire::Languages "none";
		Acquire::Retries "3";
		Dir::Etc::Netrc "/etc/apt/auth.conf";
		Dir::Etc::NetrcParts "/etc/apt/auth.conf.d";
		APT::Install-Recommends "false";
		APT::Sandbox::User "root";
	END
	cat >"$apt/apt.conf" <<-END
		Dir::State "$apt";
		Dir::State::Lists "$apt/lists";
		Dir::State::Status "$apt/status";
		Dir::Cache "$apt/cache";
		Dir::Cache::Archives "$debs";
		Dir::Etc "$apt/etc";
		Dir::Etc::TrustedParts "$keyrings";
		Dir::Etc::Trusted "/dev/null";
		APT::Architecture "amd64";
		APT::Architectures { "amd64"; };
		$(cat -- "$apt/network.conf")
	END
	cat >"$apt/etc/preferences" <<-END
		Package: $backported
		Pin: release n=$backports
		Pin-Priority: 990
	END
}

# Adds the keys that the configuration of apt names for a mirror, for one whose
# administrator signs it anew.
trust_mirror() {
	local mirror=$1 file
	grep -lFs -- "$mirror" /etc/apt/sources.list /etc/apt/sources.list.d/*.list \
		/etc/apt/sources.list.d/*.sources |
		while read -r file; do
			sed -nE 's/^Signed-By:[[:space:]]*//Ip; s/^deb .*[[ ]signed-by=([^] ]*).*/\1/Ip' "$file" |
				tr ', ' '\n'
		done | grep '^/' | sort -u |
		while read -r file; do
			if [ -s "$file" ]; then
				cp -L -- "$file" "$keyrings/"
			fi
		done || true
}

# apt, with nothing of this machine's but the way to the network.
private() {
	local command=$1
	shift
	APT_CONFIG=$apt/apt.conf LC_ALL=C "$command" "$@"
}

update_index() {
	local mirror found='' log=$logs/update.log
	while read -r mirror; do
		[ -n "$mirror" ] || continue
		trust_mirror "$mirror"
		printf 'deb %s %s main\n' "$mirror" "$suite" "$mirror" "$backports" \
			>"$apt/etc/sources.list"
		if private apt-get -q update -o APT::Update::Error-Mode=any >"$log" 2>&1 </dev/null; then
			found=$mirror
			break
		fi
		sed 's/^/    /' "$log" >&2
		if grep -q NO_PUBKEY "$log"; then
			die "the keys on this machine are too old to check Debian's $suite suite" \
				"bring them up to date first: apt-get update && apt-get install debian-archive-keyring"
		fi
		warn "no usable $suite suite at $mirror"
	done < <(host_mirrors)
	if [ -z "$found" ]; then
		if [ -z "$(host_mirrors)" ]; then
			die "no Debian mirror in the configuration of apt (/etc/apt/sources.list, /etc/apt/sources.list.d)" \
				"add one there, or name one: TMEM_MIRROR=<address> make toolbox"
		fi
		die "could not get the package index of $suite and $backports; the messages of apt are above and in $log" \
			"check that the network, the proxy and the mirror work (apt-get update), or name another mirror in TMEM_MIRROR"
	fi
}
