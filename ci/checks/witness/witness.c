// SPDX-License-Identifier: GPL-2.0
/*
 * A QEMU TCG plugin that sees every write to the page tables of an arm64 guest's
 * vmemmap, and judges it by the rules of the architecture (DDI 0487, D8.17.1). TCG
 * has a TLB, but none that has two entries for an address: what is wrong here
 * works there, and only there.
 *
 * It is outside the guest and knows nothing about HVO. It follows the tables from
 * swapper_pg_dir through the guest's memory, which it maps from the file of a
 * memory backend, and keeps what was in them. When a store changes an entry it
 * compares old and new, and the contents of the pages that they map. What TLBs may
 * still have is remembered until a broadcast invalidation of kernel addresses.
 *
 * What it cannot see: this version of QEMU does not show a plugin the operands of an
 * instruction, so an invalidation by address is taken for one of everything. That
 * one comes at the right time is judged, that its range is right, or that barriers
 * are around it, is not. Nor is what only leads to a fault: an old read-only
 * translation of a page that may be written to by now.
 *
 * What breaks the rules:
 *
 *   address     a valid entry maps another page, and it or a translation that TLBs
 *               may have is writable, or the contents differ, when it changes or
 *               when TLBs are invalidated after that
 *   writable    an entry becomes writable while TLBs may have another page for it
 *   attributes  a valid entry changes in something else than write permission
 *   make        an entry becomes valid again before what it was is invalidated; of a
 *               table, the last level only
 *   split       a block becomes a table, on a CPU without BBML3
 *   unlike      a table does not map what the block mapped that it replaces
 *   unflushed   an entry of such a table changes before the block is invalidated
 *   merge       a table becomes a block while it is in use
 *
 * Options: out=FILE ram=FILE base=PHYS root=PHYS shift=PAGE_SHIFT va=BITS start=VA
 * end=VA bbml3=0|1. Guests with one thread only (-accel tcg,thread=single).
 */
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "../../qemu-plugin.h"

EXPORT int qemu_plugin_version = 1;

#define VALID		(1ULL << 0)
#define TABLE		(1ULL << 1)	/* or page, at the last level */
#define RDONLY		(1ULL << 7)
#define DBM		(1ULL << 51)
#define SOFTWARE	((1ULL << 63) | (0xfULL << 55))

/* A page of entries below which is the vmemmap, or a part of it. */
struct table {
	uint64_t pa, va;
	int level;
	bool split;		/* it replaced a block that TLBs may have */
	uint64_t *shadow;
	struct was *was;	/* at the last level */
	struct table *next;
};

/* What TLBs may have of an entry, besides what is in it. */
struct was {
	uint64_t pa;		/* another page */
	bool other, writable, broken;
	bool listed;
};

struct pending {
	struct table *table;
	unsigned int i;
};

static struct {
	const char *out, *ram;
	uint64_t base, root, shift, va, start, end, bbml3;
} opt = { .shift = 12, .va = 48 };

static uint8_t *ram;
static uint64_t ram_size;
static uint8_t *is_table;		/* by page of the guest */
static struct table *tables[1 << 16];
static struct pending *pending;
static size_t nr_pending, max_pending;
static struct table *pending_splits[1 << 12];
static unsigned int nr_pending_splits;
static uint64_t the_pc;
static FILE *out;

static uint64_t nr_stores, nr_splits, nr_switches, nr_protects, nr_unprotects,
		nr_breaks, nr_invalidations, nr_violations;

static void die(const char *what, const char *arg)
{
	fprintf(stderr, "witness: %s %s\n", what, arg);
	exit(1);
}

static void violation(const char *what, uint64_t va, uint64_t old, uint64_t new)
{
	if (nr_violations++ < 20)
		fprintf(out, "violation %s va=%#" PRIx64 " old=%#" PRIx64 " new=%#" PRIx64
			" pc=%#" PRIx64 "\n", what, va, old, new, the_pc);
}

static uint64_t page_size(void) { return 1ULL << opt.shift; }
static unsigned int entries(void) { return 1U << (opt.shift - 3); }

static int level_shift(int level)
{
	return opt.shift + (3 - level) * (opt.shift - 3);
}

static uint64_t entry_pa(uint64_t e)
{
	uint64_t pa = e & ((1ULL << 48) - page_size());

	/* 64K pages, 52 bits of physical address */
	if (opt.shift == 16)
		pa |= (e >> 12 & 0xf) << 48;
	return pa;
}

static void *at(uint64_t pa)
{
	if (pa < opt.base || pa - opt.base >= ram_size)
		return NULL;
	return ram + (pa - opt.base);
}

static bool writable(uint64_t e)
{
	return !(e & RDONLY) || (e & DBM);
}

/* Those of a block and of a page are the same bits, but for what it is. */
static uint64_t attributes(uint64_t e)
{
	return e & ~(entry_pa(e) | TABLE | SOFTWARE);
}

static bool same_contents(uint64_t a, uint64_t b)
{
	void *p = at(a), *q = at(b);

	return p && q && !memcmp(p, q, page_size());
}

static struct table **find(uint64_t pa)
{
	struct table **t = &tables[(pa >> opt.shift) & 0xffff];

	while (*t && (*t)->pa != pa)
		t = &(*t)->next;
	return t;
}

static void changed(struct table *t, unsigned int i, uint64_t old, uint64_t new);

static struct table *add_table(uint64_t pa, int level, uint64_t va)
{
	struct table *t, **where = find(pa);
	uint64_t *now = at(pa);

	if (*where || !now)
		return *where;
	t = calloc(1, sizeof(*t));
	*t = (struct table){ .pa = pa, .va = va, .level = level };
	t->shadow = calloc(entries(), 8);
	if (level == 3)
		t->was = calloc(entries(), sizeof(*t->was));
	*where = t;
	is_table[(pa - opt.base) >> opt.shift] = 1;
	for (unsigned int i = 0; i < entries(); i++)
		if (now[i]) {
			t->shadow[i] = now[i];
			changed(t, i, 0, now[i]);
		}
	return t;
}

/* It is not walked any more. What TLBs have of it goes with it: a break. */
static void remove_table(uint64_t pa)
{
	struct table **where = find(pa), *t = *where;

	if (!t)
		return;
	for (unsigned int i = 0; t->level < 3 && i < entries(); i++)
		if ((t->shadow[i] & (VALID | TABLE)) == (VALID | TABLE))
			remove_table(entry_pa(t->shadow[i]));
	is_table[(pa - opt.base) >> opt.shift] = 0;
	*where = t->next;
	for (size_t i = 0; i < nr_pending; i++)
		if (pending[i].table == t)
			pending[i].table = NULL;
	for (unsigned int i = 0; i < nr_pending_splits; i++)
		if (pending_splits[i] == t)
			pending_splits[i] = NULL;
	free(t->shadow);
	free(t->was);
	free(t);
}

static void remember(struct table *t, unsigned int i)
{
	if (t->was[i].listed)
		return;
	if (nr_pending == max_pending) {
		max_pending = max_pending ? 2 * max_pending : 4096;
		pending = realloc(pending, max_pending * sizeof(*pending));
	}
	pending[nr_pending++] = (struct pending){ t, i };
	t->was[i].listed = true;
}

static void page_changed(struct table *t, unsigned int i, uint64_t va, uint64_t old, uint64_t new)
{
	struct was *was = &t->was[i];

	if (!(old & VALID)) {
		if ((new & VALID) && was->broken)
			violation("make", va, old, new);
		return;
	}
	if (t->split)
		violation("unflushed", va, old, new);
	if (!(new & VALID)) {
		nr_breaks++;
		was->broken = true;
		remember(t, i);
		return;
	}
	if (entry_pa(old) != entry_pa(new)) {
		nr_switches++;
		if (writable(old) || writable(new) || was->writable ||
		    (was->other && was->pa != entry_pa(new)) ||
		    !same_contents(entry_pa(old), entry_pa(new)))
			violation("address", va, old, new);
		was->pa = entry_pa(old);
		was->other = true;
		remember(t, i);
	} else if (writable(old) && !writable(new)) {
		nr_protects++;
		was->writable = true;
		remember(t, i);
	} else if (!writable(old) && writable(new)) {
		nr_unprotects++;
		if (was->other)
			violation("writable", va, old, new);
	}
	if ((attributes(old) ^ attributes(new)) & ~(RDONLY | DBM))
		violation("attributes", va, old, new);
}

static void block_changed(struct table *t, uint64_t va, uint64_t old, uint64_t new)
{
	const bool was_table = (old & (VALID | TABLE)) == (VALID | TABLE);
	const bool is = (new & (VALID | TABLE)) == (VALID | TABLE);
	struct table *child;

	if (was_table && is && entry_pa(old) == entry_pa(new))
		return;
	if (was_table && (new & VALID) && va >= opt.start)
		violation("merge", va, old, new);
	if (was_table)
		remove_table(entry_pa(old));
	if (is) {
		child = add_table(entry_pa(new), t->level + 1, va);
		if (!(old & VALID) || !child)
			return;
		nr_splits++;
		if (!opt.bbml3)
			violation("split", va, old, new);
		for (unsigned int k = 0; k < entries(); k++) {
			const uint64_t e = child->shadow[k];

			if (entry_pa(e) != entry_pa(old) + k * (1ULL << level_shift(t->level + 1)) ||
			    attributes(e) != attributes(old)) {
				violation("unlike", va, old, e);
				break;
			}
		}
		child->split = true;
		if (nr_pending_splits == sizeof(pending_splits) / sizeof(*pending_splits))
			die("too many blocks split without an invalidation", "");
		pending_splits[nr_pending_splits++] = child;
	} else if ((old & VALID) && (new & VALID)) {
		violation("attributes", va, old, new);
	}
}

static void changed(struct table *t, unsigned int i, uint64_t old, uint64_t new)
{
	const uint64_t va = t->va + ((uint64_t)i << level_shift(t->level));

	if (va + (1ULL << level_shift(t->level)) - 1 < opt.start || va >= opt.end)
		return;
	if (t->level == 3)
		page_changed(t, i, va, old, new);
	else
		block_changed(t, va, old, new);
}

static void stored(unsigned int vcpu, uint32_t info, uint64_t vaddr, void *pc)
{
	struct qemu_plugin_hwaddr *hw = qemu_plugin_get_hwaddr(info, vaddr);
	uint64_t pa, *now;
	struct table *t;
	unsigned int i;

	if (!hw || qemu_plugin_hwaddr_is_io(hw))
		return;
	pa = qemu_plugin_hwaddr_phys_addr(hw);
	if (pa < opt.base || pa - opt.base >= ram_size || !is_table[(pa - opt.base) >> opt.shift])
		return;
	t = *find(pa & -page_size());
	now = at(t->pa);
	the_pc = (uint64_t)pc;
	nr_stores++;
	/* A store is of 16 bytes at most; a pair is two for QEMU. */
	i = (pa & (page_size() - 1) & ~15ULL) / 8;
	for (unsigned int end = i + 2; i < end; i++) {
		const uint64_t old = t->shadow[i], new = now[i];

		if (old == new)
			continue;
		t->shadow[i] = new;
		changed(t, i, old, new);
	}
	(void)vcpu;
}

/* From now on nobody uses what was before. */
static void invalidated(unsigned int vcpu, void *pc)
{
	the_pc = (uint64_t)pc;
	nr_invalidations++;
	for (size_t k = 0; k < nr_pending; k++) {
		struct table *t = pending[k].table;
		unsigned int i = pending[k].i;
		struct was *was;

		if (!t)
			continue;
		was = &t->was[i];
		if (was->other && (t->shadow[i] & VALID) &&
		    !same_contents(was->pa, entry_pa(t->shadow[i])))
			violation("address", t->va + ((uint64_t)i << opt.shift), was->pa, t->shadow[i]);
		*was = (struct was){};
	}
	nr_pending = 0;
	for (unsigned int k = 0; k < nr_pending_splits; k++)
		if (pending_splits[k])
			pending_splits[k]->split = false;
	nr_pending_splits = 0;
	(void)vcpu;
}

/* TLBI of the inner or outer shareable domain, of all addresses or any ASID */
static bool invalidates_kernel(uint32_t op)
{
	const unsigned int crn = op >> 12 & 15, crm = op >> 8 & 15, op2 = op >> 5 & 7;

	if ((op & 0xffff0000) != 0xd5080000 || (crn != 8 && crn != 9))
		return false;
	if (crm == 3 || crm == 1)
		return op2 == 0 || op2 == 3 || op2 == 7;
	return (crm == 2 || crm == 5) && (op2 == 3 || op2 == 7);
}

static void translated(uint64_t id, struct qemu_plugin_tb *tb)
{
	const size_t n = qemu_plugin_tb_n_insns(tb);

	for (size_t i = 0; i < n; i++) {
		struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);
		void *pc = (void *)qemu_plugin_insn_vaddr(insn);
		uint32_t op;

		memcpy(&op, qemu_plugin_insn_data(insn), sizeof(op));
		/* User space does not write to page tables. */
		if (!((uint64_t)pc >> 63) && (uint64_t)pc < opt.base)
			continue;
		if (invalidates_kernel(op))
			qemu_plugin_register_vcpu_insn_exec_cb(insn, invalidated, NO_REGS, pc);
		else
			qemu_plugin_register_vcpu_mem_cb(insn, stored, NO_REGS, STORES, pc);
	}
	(void)id;
}

/* What no store was seen for would make all of this worthless. */
static void finish(uint64_t id, void *data)
{
	uint64_t unseen = 0, nr_tables = 0;

	for (int i = 0; i < 1 << 16; i++)
		for (struct table *t = tables[i]; t; t = t->next) {
			nr_tables++;
			unseen += !!memcmp(t->shadow, at(t->pa), page_size());
		}
	fprintf(out, "tables %" PRIu64 "\nunseen %" PRIu64 "\nstores %" PRIu64 "\nsplits %" PRIu64
		"\nprotects %" PRIu64 "\nswitches %" PRIu64 "\nunprotects %" PRIu64 "\nbreaks %" PRIu64
		"\ninvalidations %" PRIu64 "\nviolations %" PRIu64 "\n", nr_tables, unseen, nr_stores,
		nr_splits, nr_protects, nr_switches, nr_unprotects, nr_breaks, nr_invalidations,
		nr_violations);
	fclose(out);
	(void)id;
	(void)data;
}

EXPORT int qemu_plugin_install(uint64_t id, const void *info, int argc, char **argv)
{
	const struct {
		const char *name;
		uint64_t *value;
	} numbers[] = {
		{ "base", &opt.base }, { "root", &opt.root }, { "shift", &opt.shift },
		{ "va", &opt.va }, { "start", &opt.start }, { "end", &opt.end },
		{ "bbml3", &opt.bbml3 },
	};
	struct stat st;
	int fd, level;

	for (int i = 0; i < argc; i++) {
		char *value = strchr(argv[i], '=');
		unsigned int n;

		if (!value)
			die("what is", argv[i]);
		*value++ = 0;
		if (!strcmp(argv[i], "out")) {
			opt.out = value;
			continue;
		}
		if (!strcmp(argv[i], "ram")) {
			opt.ram = value;
			continue;
		}
		for (n = 0; n < sizeof(numbers) / sizeof(*numbers); n++)
			if (!strcmp(argv[i], numbers[n].name))
				break;
		if (n == sizeof(numbers) / sizeof(*numbers))
			die("what is", argv[i]);
		*numbers[n].value = strtoull(value, NULL, 0);
	}
	if (!opt.out || !opt.ram || !opt.base || !opt.root || !opt.start || !opt.end)
		die("missing: one of", "out, ram, base, root, start, end");

	out = fopen(opt.out, "w");
	if (!out)
		die("cannot write", opt.out);
	fd = open(opt.ram, O_RDONLY);
	if (fd < 0 || fstat(fd, &st))
		die("cannot open", opt.ram);
	ram_size = st.st_size;
	ram = mmap(NULL, ram_size, PROT_READ, MAP_SHARED, fd, 0);
	if (ram == MAP_FAILED)
		die("cannot map", opt.ram);
	is_table = calloc(ram_size >> opt.shift, 1);

	/* As many levels as it takes, the last one is 3. */
	for (level = 3; level_shift(level - 1) < (int)opt.va; level--)
		;
	add_table(opt.root, level, -(1ULL << opt.va));

	qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
	qemu_plugin_register_atexit_cb(id, finish, NULL);
	(void)info;
	return 0;
}
