# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# What the checks share. Sourced, never run.

. "$(dirname "${BASH_SOURCE[0]}")/../tools/lib.sh"

export LC_ALL=C
ME=$(basename "$(dirname "$(readlink -f "$0")")")

# A place for what a check throws away.
tmp=$(mktemp -d)
trap 'stop_lanes; rm -rf "$tmp"' EXIT

bad=0
ok() { printf 'ok - %s\n' "$*"; }
not_ok() { printf 'not ok - %s\n' "$*"; bad=$((bad + 1)); }
skip() { printf 'skip - %s # %s\n' "$1" "$2"; }
# long WHAT: whether to do what takes long and is not for ci/run --short
long() { [ -z "${HVO_SHORT:-}" ] || { printf 'left out - %s\n' "$*"; false; }; }
finish() { [ $bad -eq 0 ]; exit; }

# own TREE: nobody else moves $WORK/TREE to another commit until this check ends
own()
{
	local lock
	mkdir -p "$WORK"
	exec {lock}>"$WORK/$1.lock"
	flock -n "$lock" || { echo "waiting for .work/$1, which another check uses"; flock "$lock"; }
}

# ---------------------------------------------------------------------------
# Guests of a check that do not depend on each other and time nothing run two at a
# time. HVO_LANES is how many checks ci/run has running beside each other: where that
# is more than one, there are enough guests already.
GUESTS=2
[ "${HVO_LANES:-1}" -le 1 ] || GUESTS=1

# By number of beside: the process, what it is about, when it was started. The first
# $SHOWN of them have ended, and what they printed was shown.
LANES=() LANE_WHAT=() LANE_SINCE=() SHOWN=0

# beside WHAT COMMAND...: run COMMAND, most often a function of the check, in the
# background, as soon as fewer than $GUESTS are running. It has a $tmp of its own, and
# what it prints is shown when it has ended, in the order of the calls. The check goes
# on meanwhile: it can build the next kernel. It calls "collect" before it finishes.
beside()
{
	local n=${#LANES[@]} what=$1
	shift
	lanes_end $((GUESTS - 1))
	lane "$n" "$@" </dev/null >"$tmp/$n.out" 2>&1 &
	LANES+=($!) LANE_WHAT+=("$what") LANE_SINCE+=("$SECONDS")
}

lane()	# N COMMAND...
{
	local tmp=$tmp/$1.tmp
	shift
	mkdir "$tmp"
	# Time limits were measured with one guest: tools/boot looks at this.
	[ $GUESTS = 1 ] || export HVO_LANES=$GUESTS
	"$@"
}

# collect: all of it has ended, was shown, and is counted
collect() { lanes_end 0; }

# lanes_end N: until no more than N are running. Says every 30 seconds which do.
lanes_end()
{
	local alive i n said=$SECONDS
	# A step that is ended tells its whole process group: each guest tells this check again.
	trap 'trap "" INT TERM HUP; exit 143' INT TERM HUP
	while :; do
		alive=" $(jobs -rp | tr '\n' ' ') " n=0
		for ((i = SHOWN; i < ${#LANES[@]}; i++)); do
			[[ $alive != *" ${LANES[i]} "* ]] || n=$((n + 1))
		done
		while [ $SHOWN -lt ${#LANES[@]} ] && [[ $alive != *" ${LANES[SHOWN]} "* ]]; do
			show_lane $SHOWN
		done
		[ $n -gt "$1" ] || break
		sleep 0.2
		[ $((SECONDS - said)) -ge 30 ] || continue
		said=$SECONDS
		for ((i = SHOWN; i < ${#LANES[@]}; i++)); do
			note "  $(elapsed $((SECONDS - LANE_SINCE[i])))  ${LANE_WHAT[i]}"
		done
	done
}

# show_lane N: what it printed; what is not ok there is not ok here
show_lane()
{
	local rc=0 n
	wait "${LANES[$1]}" || rc=$?
	SHOWN=$(($1 + 1))
	cat "$tmp/$1.out"
	n=$(grep -c '^not ok - ' "$tmp/$1.out") || :
	bad=$((bad + n))
	[ $rc -eq 0 ] || [ "$n" -gt 0 ] || not_ok "${LANE_WHAT[$1]}: ended with $rc"
	rm -rf "$tmp/$1.out" "$tmp/$1.tmp"
}

# A check that ends before its guests takes them along. They do not hear Ctrl-C, and
# so everybody in this process group is told, as step does it.
stop_lanes()
{
	[ $SHOWN -lt ${#LANES[@]} ] && [ -n "$(jobs -rp)" ] || return 0
	trap '' INT TERM HUP
	kill -TERM 0
	wait
}

# build_once ARGUMENT...: tools/build, once for each kernel in a check: to see that
# nothing is to do takes some 20 s. KDIR is where the kernel is.
declare -A BUILT=()
build_once()
{
	[ -n "${BUILT[$*]:-}" ] || BUILT[$*]=$("$TOP/tools/build" "$@")
	KDIR=${BUILT[$*]}
}

# selftests_once ARGUMENT...: the same for tools/selftests. INSTALL is where they are.
selftests_once()
{
	[ -n "${BUILT[selftests $*]:-}" ] || BUILT[selftests $*]=$("$TOP/tools/selftests" "$@")
	INSTALL=${BUILT[selftests $*]}
}

# ---------------------------------------------------------------------------

# A check of the stack that finds no stack has not checked anything.
need_series() { [ -n "$(series_patches)" ] || die "series names no patch"; }

# sparse_tree DIR COMMIT: a fresh worktree with only the files that the stack
# touches, in a fraction of the time that a whole kernel takes. The caller
# gives it back with drop_tree.
sparse_tree()
{
	drop_tree "$1"
	worktrees kgit "$BASE_TREE" worktree add -q --no-checkout --detach "$1" "$2"
	touched_files | sed 's,^,/,' | cat - <(printf '/%s\n' .gitattributes Makefile Kconfig mm/Kconfig) |
		kgit "$1" sparse-checkout set --no-cone --stdin
	kgit "$1" checkout -q
}

drop_tree()
{
	rm -rf "$1"
	worktrees kgit "$BASE_TREE" worktree prune
}

# The files that the patches named touch; all of the stack without a name.
touched_files()
{
	# shellcheck disable=SC2046
	[ $# -gt 0 ] || set -- $(series_patches | sed "s,^,$TOP/patches/,")
	sed -n 's,^diff --git a/\(.*\) b/\(.*\)$,\1\n\2,p' "$@" | sort -u
}

# The subject of the last patch of each topic.
last_subjects()
{
	local t
	for t in $(series_topics); do
		subject_of "$TOP/patches/$(series_patches | grep "^$t/" | tail -n 1)"
	done
}
