// SPDX-License-Identifier: GPL-2.0
/*
 * A QEMU TCG plugin for tools/bench: what a guest executes between two marks. The
 * marks are instructions that do nothing, which ci/guest/bench.c has around what it
 * measures. For each pair of marks the file has a line "NAME=COUNT ...", with
 *
 *   copies    instructions that copy or clear memory: a string instruction of
 *             x86 counts once for each round, as it does for QEMU's clock, and of
 *             the functions that are named everything counts
 *   NAME      how often the function NAME was entered
 *   tlbi, dsb on arm64: broadcast TLB invalidations and barriers for completion
 *   miss-4k, miss-2m with walk=START-END: how many loads from these addresses miss a
 *             TLB, if they are mapped with 4 KB or with 2 MB. The TLB has 1024
 *             entries, direct-mapped, is empty at the first mark, and nothing else
 *             uses it. An atomic operation is a store.
 *
 * All CPUs are counted, so that of a guest with more than one it is what all of
 * them did meanwhile. Guests with one thread only (-icount, or thread=single).
 *
 * Options: arch=x86_64|arm64 out=FILE functions=FILE, of lines "copy START END" and
 * "entry NAME ADDRESS", in hexadecimal and without 0x, as are those of walk=.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "qemu-plugin.h"

EXPORT int qemu_plugin_version = 1;

#define MAX_RANGES	64
#define MAX_COUNTERS	32

static struct range { uint64_t start, end; } ranges[MAX_RANGES];
static unsigned int nr_ranges;
static struct counter {
	char name[64];
	uint64_t pc;		/* of a function */
	uint64_t value, begin;
} counters[MAX_COUNTERS];
static unsigned int nr_counters;
static struct counter *copies, *tlbi, *dsb;
static bool arm64;
static FILE *out;

#define TLB_ENTRIES	1024

static struct tlb {
	unsigned int shift;
	struct counter *misses;
	uint64_t entries[TLB_ENTRIES];
} tlbs[] = { { .shift = 12 }, { .shift = 21 } };
static struct range walk;

static void die(const char *what, const char *arg)
{
	fprintf(stderr, "count: %s %s\n", what, arg);
	exit(1);
}

static struct counter *add_counter(const char *name, uint64_t pc)
{
	struct counter *c = &counters[nr_counters];

	if (nr_counters++ == MAX_COUNTERS)
		die("too many functions:", name);
	snprintf(c->name, sizeof(c->name), "%s", name);
	c->pc = pc;
	return c;
}

static void begin(unsigned int vcpu, void *data)
{
	(void)vcpu;
	(void)data;
	for (unsigned int i = 0; i < nr_counters; i++)
		counters[i].begin = counters[i].value;
	for (unsigned int i = 0; i < sizeof(tlbs) / sizeof(*tlbs); i++)
		memset(tlbs[i].entries, 0, sizeof(tlbs[i].entries));
}

static void end(unsigned int vcpu, void *data)
{
	(void)vcpu;
	(void)data;
	for (unsigned int i = 0; i < nr_counters; i++)
		fprintf(out, "%s%s=%" PRIu64, i ? " " : "", counters[i].name,
			counters[i].value - counters[i].begin);
	fprintf(out, "\n");
	fflush(out);
}

/* See mark() in ci/guest/bench.c. 0: no mark, 1: the first, 2: the second */
static int mark(const uint8_t *code, size_t size)
{
	static const uint8_t nop[] = { 0x0f, 0x1f, 0x84, 0x00, 0x00, 0x48, 0x56, 0x4f };
	uint8_t insn[sizeof(nop)];
	uint32_t op;

	if (arm64) {
		memcpy(&op, code, sizeof(op));
		if ((op & 0xffe0001f) != 0xd280001f)
			return 0;
		op = (op >> 5 & 0xffff) - 0x4856;
		return op == 1 || op == 2 ? op : 0;
	}
	if (size != sizeof(nop))
		return 0;
	memcpy(insn, code, sizeof(nop));
	insn[4] = 0;
	if (memcmp(insn, nop, sizeof(nop)) || (code[4] != 1 && code[4] != 2))
		return 0;
	return code[4];
}

/* rep movs and rep stos, with whatever other prefixes */
static bool is_string(const uint8_t *code, size_t size)
{
	bool rep = false;

	for (size_t i = 0; i < size; i++) {
		if (code[i] == 0xf3)
			rep = true;
		else if ((code[i] & 0xf0) != 0x40 && code[i] != 0x66)
			return rep && i == size - 1 &&
			       (code[i] == 0xa4 || code[i] == 0xa5 ||
				code[i] == 0xaa || code[i] == 0xab);
	}
	return false;
}

static bool in_range(uint64_t pc)
{
	for (unsigned int i = 0; i < nr_ranges; i++)
		if (pc >= ranges[i].start && pc < ranges[i].end)
			return true;
	return false;
}

/* TLBI of the inner or outer shareable domain */
static bool is_tlbi(uint32_t op)
{
	const unsigned int crn = op >> 12 & 15, crm = op >> 8 & 15;

	return (op & 0xffff0000) == 0xd5080000 && (crn == 8 || crn == 9) &&
	       (crm == 1 || crm == 2 || crm == 3 || crm == 5);
}

/* DSB of whatever domain and kind, without the forms that are something else */
static bool is_dsb(uint32_t op)
{
	const unsigned int crm = op >> 8 & 15;

	return (op & 0xfffff0ff) == 0xd503309f && crm != 0 && crm != 4;
}

static void loaded(unsigned int vcpu, uint32_t info, uint64_t va, void *data)
{
	(void)vcpu;
	(void)data;
	if (qemu_plugin_mem_is_store(info) || va < walk.start || va >= walk.end)
		return;
	for (unsigned int i = 0; i < sizeof(tlbs) / sizeof(*tlbs); i++) {
		const uint64_t page = va >> tlbs[i].shift;
		uint64_t *entry = &tlbs[i].entries[page % TLB_ENTRIES];

		if (*entry != page) {
			*entry = page;
			tlbs[i].misses->value++;
		}
	}
}

static void add(struct qemu_plugin_insn *insn, struct counter *c)
{
	qemu_plugin_register_vcpu_insn_exec_inline(insn, ADD_U64, &c->value, 1);
}

static void translated(uint64_t id, struct qemu_plugin_tb *tb)
{
	const size_t n = qemu_plugin_tb_n_insns(tb);

	(void)id;
	for (size_t i = 0; i < n; i++) {
		struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);
		const uint8_t *code = qemu_plugin_insn_data(insn);
		const size_t size = qemu_plugin_insn_size(insn);
		const uint64_t pc = qemu_plugin_insn_vaddr(insn);
		uint32_t op = 0;

		switch (mark(code, size)) {
		case 1:
			qemu_plugin_register_vcpu_insn_exec_cb(insn, begin, NO_REGS, NULL);
			continue;
		case 2:
			qemu_plugin_register_vcpu_insn_exec_cb(insn, end, NO_REGS, NULL);
			continue;
		}
		/* User space is in what is measured only to make system calls. */
		if (!(pc >> 63))
			continue;
		if (arm64)
			memcpy(&op, code, sizeof(op));
		if (in_range(pc) || (!arm64 && is_string(code, size)))
			add(insn, copies);
		if (arm64 && is_tlbi(op))
			add(insn, tlbi);
		if (arm64 && is_dsb(op))
			add(insn, dsb);
		if (walk.end)
			qemu_plugin_register_vcpu_mem_cb(insn, loaded, NO_REGS, ALL_ACCESSES, NULL);
		for (unsigned int c = 0; c < nr_counters; c++)
			if (counters[c].pc == pc)
				add(insn, &counters[c]);
	}
}

static void read_functions(const char *name)
{
	char line[256], what[64];
	uint64_t start, end;
	FILE *f = fopen(name, "r");

	if (!f)
		die("cannot open", name);
	while (fgets(line, sizeof(line), f)) {
		if (sscanf(line, "copy %" SCNx64 " %" SCNx64, &start, &end) == 2) {
			if (nr_ranges == MAX_RANGES)
				die("too many functions that copy:", name);
			ranges[nr_ranges++] = (struct range){ start, end };
		} else if (sscanf(line, "entry %63s %" SCNx64, what, &start) == 2) {
			add_counter(what, start);
		} else {
			die("what is", line);
		}
	}
	fclose(f);
}

EXPORT int qemu_plugin_install(uint64_t id, const void *info, int argc, char **argv)
{
	const char *functions = NULL, *to = NULL;

	(void)info;
	for (int i = 0; i < argc; i++) {
		if (!strcmp(argv[i], "arch=arm64"))
			arm64 = true;
		else if (!strncmp(argv[i], "out=", 4))
			to = argv[i] + 4;
		else if (!strncmp(argv[i], "functions=", 10))
			functions = argv[i] + 10;
		else if (!strncmp(argv[i], "walk=", 5)) {
			if (sscanf(argv[i] + 5, "%" SCNx64 "-%" SCNx64, &walk.start, &walk.end) != 2)
				die("what is", argv[i]);
		} else if (strcmp(argv[i], "arch=x86_64"))
			die("what is", argv[i]);
	}
	if (!functions || !to)
		die("missing: one of", "out, functions");
	copies = add_counter("copies", 0);
	if (arm64) {
		tlbi = add_counter("tlbi", 0);
		dsb = add_counter("dsb", 0);
	}
	if (walk.end) {
		tlbs[0].misses = add_counter("miss-4k", 0);
		tlbs[1].misses = add_counter("miss-2m", 0);
	}
	read_functions(functions);
	out = fopen(to, "w");
	if (!out)
		die("cannot write", to);
	qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
	return 0;
}
