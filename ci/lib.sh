# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# What the checks share. Sourced, never run.

. "$(dirname "${BASH_SOURCE[0]}")/../tools/lib.sh"

export LC_ALL=C
ME=$(basename "$(dirname "$(readlink -f "$0")")")

# A place for what a check throws away.
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

bad=0
ok() { printf 'ok - %s\n' "$*"; }
not_ok() { printf 'not ok - %s\n' "$*"; bad=$((bad + 1)); }
skip() { printf 'skip - %s # %s\n' "$1" "$2"; }
# long WHAT: whether to do what takes long and is not for ci/run --short
long() { [ -z "${HVO_SHORT:-}" ] || { printf 'left out - %s\n' "$*"; false; }; }
finish() { [ $bad -eq 0 ]; exit; }

# A check of the stack that finds no stack has not checked anything.
need_series() { [ -n "$(series_patches)" ] || die "series names no patch"; }

# sparse_tree DIR COMMIT: a fresh worktree with only the files that the stack
# touches, in a fraction of the time that a whole kernel takes. The caller
# gives it back with drop_tree.
sparse_tree()
{
	drop_tree "$1"
	kgit "$BASE_TREE" worktree add -q --no-checkout --detach "$1" "$2"
	touched_files | sed 's,^,/,' | cat - <(printf '/%s\n' .gitattributes Makefile Kconfig mm/Kconfig) |
		kgit "$1" sparse-checkout set --no-cone --stdin
	kgit "$1" checkout -q
}

drop_tree()
{
	rm -rf "$1"
	kgit "$BASE_TREE" worktree prune
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
