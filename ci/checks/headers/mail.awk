# SPDX-License-Identifier: GPL-2.0
#
# Print what is wrong with a patch as a mail. AUTHORS in the environment has
# who may be its author, one 'NAME <MAIL>' a line; -v cover=1 is for a cover
# letter, which carries no tags.

function error(line, what)
{
	printf "%s:%d: error: %s\n", FILENAME, line, what
	errors++
}

BEGIN {
	# maintainer-tip.rst, "Ordering of commit tags". Assisted-by is younger
	# than that list: it says how the change was made, so it goes with
	# Co-developed-by, above the Signed-off-by that the submitter adds.
	n = split("Fixes Reported-by Closes Originally-by Suggested-by Co-developed-by " \
		  "Assisted-by Signed-off-by Tested-by Reviewed-by Acked-by Cc Link", a, " ")
	for (i = 1; i <= n; i++)
		rank[a[i]] = i
	header = 1
}

header && /^$/ { header = 0; next }
header && /^[ \t]/ { sub(/^[ \t]+/, " "); value[name] = value[name] $0; next }
header {
	if (NR == 1 && /^From [0-9a-f]+ /) {
		if (!/^From 0000000000000000000000000000000000000000 /)
			error(NR, "not from 'git format-patch --zero-commit': tools/export writes it so")
		next
	}
	name = $0
	sub(/:.*/, "", name)
	at[name] = NR
	value[name] = substr($0, length(name) + 3)
	next
}

/^---$/ { exit }

{
	last = NR
	if (length($0) > 75 && !/^[ \t]/ && !/:\/\// && !/^[A-Z][A-Za-z-]+: /)
		error(NR, "line of " length($0) " columns, more than 75")
	lower = tolower($0)
	if (lower ~ /^ *(signed-off|reviewed|tested|acked)-by:/)
		error(NR, "only a person can give " $1)
	tag = $0
	sub(/:.*/, "", tag)
	if ($0 ~ /^[A-Z][A-Za-z-]+: ./ && tag in rank) {
		if (!tags)
			first = NR
		tags++
		if (rank[tag] < previous)
			error(NR, tag " is out of order (maintainer-tip.rst)")
		previous = rank[tag]
		seen[tag]++
		taglast = NR
	} else if (/^[A-Z][a-z]+(-[a-z]+)*-by:/) {
		error(NR, "unknown or empty tag " $1)
	} else if (tags && !/^$/) {
		error(NR, "text after the first tag (line " first "): tags are the last paragraph")
	} else if (tags && /^$/ && !gap) {
		gap = NR
	} else if (!/^$/) {
		body++
	}
	if (tag == "Fixes" && !/^Fixes: [0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f] \(".+"\)$/)
		error(NR, "not in the form 'Fixes: 123456789abc (\"subject\")'")
	# coding-assistants.rst: Assisted-by: LLM [TOOL1] [TOOL2]
	if (tag == "Assisted-by") {
		if (!/^Assisted-by: LLM( [A-Za-z][A-Za-z0-9_.+-]*)*$/)
			error(NR, "not in the form 'Assisted-by: LLM [TOOL1] [TOOL2]' (coding-assistants.rst)")
		else if (/ (git|gcc|clang|make|vim?|emacs)( |$)/)
			error(NR, "basic development tools are not listed (coding-assistants.rst)")
	}
}

END {
	from = value["From"]
	subject = value["Subject"]
	if (!("From" in at))
		error(1, "no From: header")
	else if (!index("\n" ENVIRON["AUTHORS"] "\n", "\n" from "\n")) {
		split(ENVIRON["AUTHORS"], a, "\n")
		error(at["From"], "From is " from ", the author of the commit here is " a[1])
	}
	if (!("Subject" in at)) {
		error(1, "no Subject: header")
		exit 1
	}
	line = at["Subject"]
	if (cover)
		exit errors > 0
	if (!("Date" in at))
		error(1, "no Date: header")
	if (subject !~ /^\[PATCH\] /)
		error(line, "the subject does not start with '[PATCH] '")
	sub(/^\[PATCH[^]]*\] */, "", subject)
	if (length(subject) > 75)
		error(line, "subject of " length(subject) " characters, more than 75")
	if (subject !~ /^([A-Za-z0-9_\/.,*-]+: )+[^ ]/)
		error(line, "the subject has no 'subsystem: ' prefix")
	if (subject ~ /=\?/)
		error(line, "the subject is not plain ASCII")
	if (subject ~ /\.$/)
		error(line, "the subject ends with a full stop")
	verb = subject
	sub(/^([A-Za-z0-9_\/.,*-]+: )+/, "", verb)
	sub(/[^A-Za-z].*/, "", verb)
	verb = tolower(verb)
	if (verb ~ /(ing|ed|[^su]s)$/ &&
	    verb !~ /^(bring|ping|string|embed|exceed|feed|need|proceed|seed|shed|speed|alias|bias|canvas)$/)
		error(line, "not in the imperative: '" verb "'")
	if (!body)
		error(last ? last : line, "no body: say why")
	if (gap && gap < taglast)
		error(gap, "empty line among the tags")
	if (seen["Assisted-by"] != 1)
		error(last ? last : line, "exactly one Assisted-by: is wanted (coding-assistants.rst)")
	exit errors > 0
}
