# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# What tools/* and ci/* share. Sourced, never run.

set -euo pipefail

TOP=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
# Kernel trees, build output, logs. Ignored by git; may be deleted at any time,
# except for work in $WORK/linux that was not exported yet.
WORK=${HVO_WORK:-$TOP/.work}
ME=${0##*/}
NPROC=$(nproc)

# shellcheck source=ci/base.pin
. "$TOP/ci/base.pin"

# The base (a git repository with one commit, or a clone of the user's tree),
# the base with the series applied, and the tree to work in.
BASE_TREE=$WORK/base
PATCHED_TREE=$WORK/patched
LINUX_TREE=$WORK/linux

# ---------------------------------------------------------------------------
# Messages. Everything but a tool's result goes to stderr.

note() { printf '%s\n' "$*" >&2; }
warn() { printf '%s: warning: %s\n' "$ME" "$*" >&2; }

# die WHAT [HOW TO MEND]...
die()
{
	printf '%s: %s\n' "$ME" "$1" >&2
	shift
	[ $# -eq 0 ] || printf '    %s\n' "$@" >&2
	exit 1
}

# The comment block at the top of the tool is its --help.
usage()
{
	sed -n '2,/^[^#]/ { /^# SPDX/d; /^#$/ { s/.*//; p; d }; s/^# //p }' "$0"
	exit 0
}

badarg() { die "$1" "see '$ME --help'"; }

# need_arg "$@": the option $1 must be followed by a value
need_arg() { [ $# -ge 2 ] && [ -n "$2" ] || badarg "$1 wants a value"; }

elapsed() { printf '%dm%02ds' $(($1 / 60)) $(($1 % 60)); }

# step WHAT LOG COMMAND...: run a long command with its output in LOG. On a
# terminal the last line of the log is shown as it grows, elsewhere a line
# every 30 seconds. Ends with the time it took; the tail of the log on failure.
step()
{
	local what=$1 log=$2 start=$SECONDS last=$SECONDS pid rc=0 line
	shift 2
	mkdir -p "$(dirname "$log")"
	[ -t 2 ] || printf '%-48s ...\n' "$what" >&2
	"$@" >"$log" 2>&1 </dev/null &
	pid=$!
	# What runs in the background does not hear Ctrl-C: pass it on to all.
	trap 'trap - INT TERM; kill -TERM 0' INT TERM
	while kill -0 $pid 2>/dev/null; do
		sleep 0.2
		line=$(tail -c 300 "$log" | tr -d '\r' | tail -n 1 | cut -c 1-60)
		if [ -t 2 ]; then
			printf '\r\033[K%-40s %s  %s' "$what" \
				"$(elapsed $((SECONDS - start)))" "$line" >&2
		elif [ $((SECONDS - last)) -ge 30 ]; then
			last=$SECONDS
			printf '  %s  %s\n' "$(elapsed $((SECONDS - start)))" "$line" >&2
		fi
	done
	wait $pid || rc=$?
	trap - INT TERM
	[ ! -t 2 ] || printf '\r\033[K' >&2
	if [ $rc -eq 0 ]; then
		printf '%-48s done  %s\n' "$what" "$(elapsed $((SECONDS - start)))" >&2
		return 0
	fi
	printf '%-48s FAILED (exit %d)  %s\n' "$what" $rc "$(elapsed $((SECONDS - start)))" >&2
	tail -n 25 "$log" | sed 's/^/    | /' >&2
	note "    the whole log: $log"
	return $rc
}

# ---------------------------------------------------------------------------
# Packages

apt_run()
{
	local sudo=()
	[ "$(id -u)" = 0 ] || sudo=(sudo -n)
	DEBIAN_FRONTEND=noninteractive "${sudo[@]}" apt-get "$@"
}

# need WHY COMMAND=PACKAGE...: install the packages of the commands that are
# not there. A word that starts with / is a file to look for instead.
need()
{
	local why=$1 pair what missing=()
	shift
	# A command is there before the libraries that it needs, while somebody installs it.
	[ ! -e "$WORK/log/apt.lock" ] || flock -s "$WORK/log/apt.lock" true
	for pair in "$@"; do
		what=${pair%%=*}
		case $what in
		/*) [ -e "$what" ] || missing+=("${pair#*=}") ;;
		*) command -v "$what" >/dev/null || missing+=("${pair#*=}") ;;
		esac
	done
	[ ${#missing[@]} -gt 0 ] || return 0
	command -v apt-get >/dev/null ||
		die "missing for $why: ${missing[*]} (Debian's names)" \
		    "this machine has no apt-get: install them its own way, then try again"
	[ "$(id -u)" = 0 ] || sudo -n true 2>/dev/null ||
		die "missing for $why: ${missing[*]}" \
		    "run as root: apt-get install ${missing[*]}"
	mkdir -p "$WORK/log"
	(
		flock 9
		if [ ! -e "$WORK/log/apt-update" ] ||
		   [ -n "$(find "$WORK/log/apt-update" -mmin +600)" ]; then
			step "apt-get update" "$WORK/log/apt-update.log" apt_run update &&
				touch "$WORK/log/apt-update" || exit
		fi
		step "apt-get install ${missing[*]} ($why)" "$WORK/log/apt-install.log" \
			apt_run install -y --no-install-recommends "${missing[@]}"
	) 9>"$WORK/log/apt.lock" ||
		die "could not install what $why needs: ${missing[*]}" \
		    "check the network and 'apt-get update', or install them by hand"
}

# apt_private SUITE ARCH COMMAND...: apt with this machine's sources, the suite
# replaced and all state in .work, so that signatures are checked with this
# machine's keys and nothing of its own state changes.
apt_private()
{
	local suite=$1 arch=$2 dir=$WORK/apt/$1-$2
	shift 2
	mkdir -p "$dir/lists/partial" "$dir/cache/archives/partial" "$dir/sources.d"
	[ -e "$dir/status" ] || : >"$dir/status"
	apt-get -q -o APT::Architecture="$arch" -o APT::Architectures="$arch" -o Dir::State="$dir" -o Dir::State::lists="$dir/lists" \
		-o Dir::State::status="$dir/status" -o Dir::Cache="$dir/cache" \
		-o Dir::Etc::SourceList=/dev/null -o Dir::Etc::SourceParts="$dir/sources.d" \
		-o Dir::Etc::Preferences=/dev/null -o Dir::Etc::PreferencesParts=/dev/null \
		-o APT::Sandbox::User=root -o Acquire::Languages=none "$@"
}

# write_sources SUITE ARCH
# Debian's own archive as this machine reaches it: every source that has the
# suite that the machine runs, under another suite's name.
write_sources()
{
	local suite=$1 out=$WORK/apt/$1-$2/sources.d codename f
	codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-stable}")
	mkdir -p "$out"
	rm -f "$out"/*
	for f in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
		[ -e "$f" ] || continue
		sed -n "s/^\(deb\(-src\)\? .*\) \($codename\|stable\|testing\|unstable\|sid\) .*/\1 $suite main/p" \
			"$f" | grep '^deb ' | sort -u >"$out/$(basename "$f")" || rm -f "$out/$(basename "$f")"
	done
	for f in /etc/apt/sources.list.d/*.sources; do
		[ -e "$f" ] || continue
		awk -v RS= -v ORS='\n\n' -v c="$codename" -v s="$suite" '
			$0 ~ "(^|\n)Suites:[^\n]*[ \t]" c "([ \t\n]|$)" {
				gsub(/(^|\n)#[^\n]*/, "")
				sub(/Suites:[^\n]*/, "Suites: " s)
				sub(/Components:[^\n]*/, "Components: main")
				print
			}' "$f" >"$out/$(basename "$f")"
	done
	find "$out" -type f -empty -delete
	[ -n "$(ls "$out")" ]
}

# apt_download SUITE ARCH PACKAGE DIR: leaves PACKAGE_*.deb in DIR. A suite is
# asked for its lists once; one that could not be had is asked again. One at a time:
# apt refuses to share its lists.
apt_download()
{
	mkdir -p "$WORK/apt"
	(
		flock 5
		do_apt_download "$@"
	) 5>"$WORK/apt/lock"
}

do_apt_download()
{
	local suite=$1 arch=$2 pkg=$3 dir=$4 state=$WORK/apt/$1-$2
	command -v apt-get >/dev/null || { warn "no apt-get on this machine"; return 1; }
	if [ ! -e "$state/updated" ]; then
		write_sources "$suite" "$arch" ||
			{ warn "no Debian archive among this machine's apt sources"; return 1; }
		step "apt: package lists of $suite, $arch" "$WORK/log/apt-$suite-$arch.log" \
			apt_private "$suite" "$arch" update -o APT::Update::Error-Mode=any || return 1
		touch "$state/updated"
	fi
	mkdir -p "$dir"
	rm -f "$dir/${pkg%%=*}"_*.deb
	(cd "$dir" && step "apt: download $pkg from $suite, $arch" "$WORK/log/apt-download.log" \
		apt_private "$suite" "$arch" download "$pkg")
}

# pinned_deb PACKAGE ARCH: print the path of a package that comes with the base, of the
# same version. Tried as tools/fetch does it: what is there, the pinned suite, other
# suites, ../shared/base, any version. Who asks looks at the sha256.
SUITES="unstable testing stable-backports stable"
pinned_deb()
{
	local pkg=$1 arch=$2 dir=$WORK/download f s v
	f=$dir/${pkg}_${BASE_PACKAGE_VERSION}_$arch.deb
	need "Debian's packages" dpkg-deb=dpkg
	for v in "=$BASE_PACKAGE_VERSION" ''; do
		for s in $BASE_SUITE $SUITES; do
			[ ! -e "$f" ] || { echo "$f"; return; }
			! apt_download "$s" "$arch" "$pkg$v" "$dir" || f=$(ls "$dir/${pkg}"_*"_$arch.deb")
		done
		[ ! -e "$f" ] || { echo "$f"; return; }
		f=$TOP/../shared/base/${f##*/}
		[ ! -e "$f" ] || { echo "$f"; return; }
		f=$dir/${f##*/}
		[ -z "$v" ] || warn "$pkg $BASE_PACKAGE_VERSION could not be had: trying any other version"
	done
	die "Debian's $pkg for $arch could not be had" \
	    "check the network, or put ${f##*/} into $dir"
}

# unpacked PACKAGE ARCH PATH SHA256 OUT: a file out of such a package. Another one than
# the pinned one is used with a warning, as tools/fetch does with the base.
unpacked()
{
	[ ! -e "$5" ] || return 0
	mkdir -p "$WORK/download"
	(
		flock 5
		do_unpack "$@"
	) 5>"$WORK/download/lock"
}

do_unpack()
{
	local deb tmp=$5.new
	[ ! -e "$5" ] || return 0
	deb=$(pinned_deb "$1" "$2")
	mkdir -p "$(dirname "$5")"
	dpkg-deb --fsys-tarfile "$deb" | tar -xOf - --wildcards "$3" >"$tmp"
	case $3 in *.xz) xz -d <"$tmp" >"$tmp.2"; mv "$tmp.2" "$tmp" ;; esac
	[ "$(sha256sum "$tmp" | cut -d' ' -f1)" = "$4" ] ||
		warn "${3##*/} of ${deb##*/} is not the one that ci/base.pin names"
	mv "$tmp" "$5"
}

# debian_config ARCH: print where Debian's configuration of the base is
debian_config()
{
	local name=CONFIG_NAME_$1 sum=CONFIG_SHA256_$1 out
	[ -n "${!name:-}" ] || die "ci/base.pin names no configuration of Debian's for $1"
	out=$WORK/download/config.${!name}
	unpacked "$CONFIG_PACKAGE" "$DEB_ARCH" "*/config.${!name}.xz" "${!sum}" "$out"
	echo "$out"
}

# debian_image: print where the kernel is that Debian has built of the base
debian_image()
{
	local out=$WORK/download/vmlinuz-debian
	unpacked "$IMAGE_PACKAGE" amd64 "*/vmlinuz*" "$IMAGE_SHA256" "$out"
	echo "$out"
}

# ---------------------------------------------------------------------------
# Trees. Plumbing must not depend on the user's git configuration.

kgit()
{
	local tree=$1
	shift
	GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_NOSYSTEM=1 git -C "$tree" \
		-c user.name="$GIT_NAME" -c user.email="$GIT_EMAIL" \
		-c advice.detachedHead=false -c gc.auto=0 -c core.fsync=none "$@"
}

# Who commits in the trees under $WORK: the identity that git has here, since
# git am wants one; the authors are those of the patches.
GIT_NAME=$(git -C "$TOP" config user.name 2>/dev/null || echo nobody)
GIT_EMAIL=$(git -C "$TOP" config user.email 2>/dev/null || echo nobody@localhost)

is_kernel() { [ -f "$1/Makefile" ] && [ -f "$1/Kconfig" ] && [ -d "$1/mm" ]; }

kernel_version()
{
	sed -n 's/^\(VERSION\|PATCHLEVEL\|SUBLEVEL\|EXTRAVERSION\) *= *//p' "$1/Makefile" |
		head -n 4 | paste -sd. | sed 's/\.\(-[^.]*\)$/\1/; s/\.$//'
}

# The patches of a series file, in order.
series_patches() { sed 's/#.*//; s/[[:space:]]*$//; /^$/d' "${1:-$TOP/series}"; }
# A subject has up to 75 columns: what git makes a name of is not to be cut.
NAME_MAX_LENGTH=90

series_topics() { series_patches "$@" | cut -d/ -f1 | uniq; }

# subject_of FILE: the subject of a mail, unfolded, without [PATCH]
subject_of()
{
	git mailinfo -b /dev/null /dev/null <"$1" 2>/dev/null | sed -n 's/^Subject: //p' |
		sed 's/^\[PATCH[^]]*\] *//'
}

# am_series TREE PATCH...: git am, one by one, so that the one that does not
# apply can be named. Leaves TREE where it was when one does not.
am_series()
{
	local tree=$1 start p
	shift
	start=$(kgit "$tree" rev-parse HEAD)
	mkdir -p "$WORK/log"
	for p in "$@"; do
		if ! kgit "$tree" am --keep-cr --no-3way --committer-date-is-author-date \
		     -q "$TOP/patches/$p" </dev/null >"$WORK/log/am.log" 2>&1; then
			kgit "$tree" am --abort >/dev/null 2>&1 || :
			kgit "$tree" reset -q --hard "$start"
			sed 's/^/    | /' "$WORK/log/am.log" >&2
			die "patches/$p does not apply to $(kernel_version "$tree")" \
			    "the stack is made for $BASE_TAG; 'git -C $tree am -3 $TOP/patches/$p' shows the conflict"
		fi
	done
}

# What the patched tree must be made of: changes when the base or a patch does.
series_id()
{
	{
		kgit "$BASE_TREE" rev-parse base
		series_patches
		series_patches | sed "s,^,$TOP/patches/," | xargs -r cat
	} | sha256sum | cut -c 1-16
}

# The base with the whole series applied, in $PATCHED_TREE. Only files that
# differ from the last time are touched, so that builds stay incremental.
patched_tree()
{
	"$TOP/tools/fetch" --quiet
	(
		flock 6
		make_patched_tree
	) 6>"$WORK/patched.lock"
}

make_patched_tree()
{
	local id tmp=$WORK/am
	id=$(series_id)
	if [ "$(cat "$PATCHED_TREE.id" 2>/dev/null)" = "$id" ] &&
	   [ -d "$PATCHED_TREE" ]; then
		return
	fi
	rm -rf "$tmp"
	worktrees kgit "$BASE_TREE" worktree prune
	worktrees kgit "$BASE_TREE" worktree add -q --no-checkout --detach "$tmp" base
	kgit "$tmp" sparse-checkout set --no-cone Makefile Kconfig mm/Kconfig
	kgit "$tmp" checkout -q
	# shellcheck disable=SC2046
	am_series "$tmp" $(series_patches)
	kgit "$BASE_TREE" branch -f patched "$(kgit "$tmp" rev-parse HEAD)" >/dev/null
	worktrees kgit "$BASE_TREE" worktree remove --force "$tmp"
	add_tree "$PATCHED_TREE" patched
	echo "$id" >"$PATCHED_TREE.id"
}

# worktrees COMMAND...: change which worktrees the base has, one at a time: to git, one
# that is being made looks like one that is gone.
worktrees()
{
	(
		flock 5
		"$@"
	) 5>"$WORK/worktrees.lock"
}

# add_tree DIR COMMIT: a worktree of the base at COMMIT, detached; one that is
# there already is moved to it. Not for trees that a person works in.
add_tree()
{
	if [ -e "$1/.git" ]; then
		kgit "$1" reset -q --hard
		kgit "$1" checkout -q --detach "$2"
		kgit "$1" clean -qfd
	else
		rm -rf "$1"
		worktrees kgit "$BASE_TREE" worktree prune
		step "check out ${1##*/}" "$WORK/log/checkout-${1##*/}.log" \
			worktrees kgit "$BASE_TREE" worktree add -q --detach "$1" "$2"
	fi
}

# linux_state: where HEAD and the topic branches of the tree to work in are, as
# apply and export leave it in $LINUX_TREE.applied
linux_state()
{
	kgit "$LINUX_TREE" rev-parse HEAD
	kgit "$LINUX_TREE" for-each-ref --format='%(objectname) %(refname)' refs/heads/topic/
}

# What is there and in no patch: changes, new files, commits. Says nothing if
# there is no such tree, or nothing like that in it.
unexported_work()
{
	[ -e "$LINUX_TREE/.git" ] || return 0
	kgit "$LINUX_TREE" status --porcelain | sed -n 1,5p
	[ "$(linux_state)" = "$(cat "$LINUX_TREE.applied" 2>/dev/null)" ] ||
		echo "commits or branches that are not exported"
}

# tree_of NAME: base | patched | linux | a directory; and prefix, the tree that
# ci/checks moves from patch to patch
tree_of()
{
	case $1 in
	base)
		"$TOP/tools/fetch" --quiet
		echo "$BASE_TREE" ;;
	patched)
		patched_tree
		echo "$PATCHED_TREE" ;;
	linux)
		[ -e "$LINUX_TREE/.git" ] ||
			die "there is no tree to work in yet" "make it with 'tools/apply'"
		echo "$LINUX_TREE" ;;
	prefix)
		[ -e "$WORK/prefix/.git" ] || add_tree "$WORK/prefix" base
		echo "$WORK/prefix" ;;
	*)
		is_kernel "$1" || die "$1 is not a kernel tree" \
			"give 'base', 'patched', 'linux', or a directory with a kernel's source"
		(cd "$1" && pwd -P) ;;
	esac
}

# ---------------------------------------------------------------------------
# Architectures

ARCHES="x86_64 arm64 riscv64"

# arch_set ARCH: KARCH, CROSS, IMAGE, QEMU and the Debian names for it
arch_set()
{
	case $1 in
	x86_64)
		KARCH=x86 CROSS=x86_64-linux-gnu- IMAGE=arch/x86/boot/bzImage
		QEMU=qemu-system-x86_64 QEMU_PKG=qemu-system-x86 DEB_ARCH=amd64 ;;
	arm64)
		KARCH=arm64 CROSS=aarch64-linux-gnu- IMAGE=arch/arm64/boot/Image
		QEMU=qemu-system-aarch64 QEMU_PKG=qemu-system-arm DEB_ARCH=arm64 ;;
	riscv64)
		KARCH=riscv CROSS=riscv64-linux-gnu- IMAGE=arch/riscv/boot/Image
		QEMU=qemu-system-riscv64 QEMU_PKG=qemu-system-misc DEB_ARCH=riscv64 ;;
	*)
		die "unknown architecture '$1'" "one of: $ARCHES" ;;
	esac
	# The native compiler goes by its short name on some machines only.
	if [ "$1" = "$(uname -m | sed s/aarch64/arm64/)" ]; then
		CROSS=
	fi
	CROSS_PKG=gcc-${CROSS%-}
	# A guest that runs meanwhile has time limits, and a build has none.
	KMAKE=(nice make ARCH="$KARCH" CROSS_COMPILE="$CROSS")
}

need_compiler()
{
	local pkgs=(make=make flex=flex bison=bison bc=bc
		    /usr/include/gelf.h=libelf-dev /usr/include/openssl/ssl.h=libssl-dev)
	if [ -n "$CROSS" ]; then
		pkgs+=("${CROSS}gcc=$CROSS_PKG"
		       "/usr/${CROSS%-}/include/stdio.h=libc6-dev-$DEB_ARCH-cross")
	else
		pkgs+=(gcc=gcc /usr/include/stdio.h=libc6-dev)
	fi
	need "building for $DEB_ARCH" "${pkgs[@]}"
}

# build_dir TREE ARCH [FRAGMENT]...: where tools/build puts it. For our own trees
# that is a folder right in the tree (git ignores it): the path to the source is
# then the same in all of them, and so ccache knows in one what another built.
build_dir()
{
	local tree=$1 IFS=-
	shift
	case $tree in
	base | patched | linux | prefix | mutant) echo "$WORK/$tree/.o-$*" ;;
	*) echo "$WORK/build/$tree-$*" ;;
	esac
}

# ---------------------------------------------------------------------------
# The guest's userland: bash for run_vmtests.sh, busybox for everything else,
# both static and Debian's, so that the kernel's scripts run unmodified.

guest_userland()	# ARCH
{
	mkdir -p "$WORK/guest"
	(
		flock 6
		make_guest_userland "$1"
	) 6>"$WORK/guest/lock"
}

make_guest_userland()
{
	local arch=$1 out=$WORK/guest/$1.cpio.gz dir=$WORK/guest/$1 p s
	[ ! -e "$out" ] || return 0
	need "the guest's userland" dpkg-deb=dpkg cpio=cpio
	rm -rf "$dir" "$dir.deb"
	mkdir -p "$dir/bin"
	for p in busybox-static bash-static; do
		for s in "$(. /etc/os-release && echo "${VERSION_CODENAME:-stable}")" testing unstable; do
			! apt_download "$s" "$DEB_ARCH" "$p" "$WORK/download" || break
		done
		ls "$WORK/download/${p}"_*"_$DEB_ARCH.deb" >/dev/null 2>&1 ||
			die "Debian's $p for $DEB_ARCH could not be had" \
			    "check the network, or put ${p}_VERSION_$DEB_ARCH.deb into $WORK/download"
		dpkg-deb -x "$WORK/download/${p}"_*"_$DEB_ARCH.deb" "$dir.deb"
	done
	cp "$(find "$dir.deb" -type f -path "*/bin/busybox")" "$dir/bin/busybox"
	cp "$(find "$dir.deb" -type f -path "*/bin/bash-static")" "$dir/bin/bash"
	rm -rf "$dir.deb"
	(cd "$dir" && find . | cpio --quiet -o -H newc -R 0:0 | gzip -9) >"$out.new"
	mv "$out.new" "$out"
}
