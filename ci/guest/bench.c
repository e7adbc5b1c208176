// SPDX-License-Identifier: GPL-2.0
/*
 * Runs in the guest of tools/bench: how much what HugeTLB pools are made for
 * costs, and what that leaves behind in memory. Each measurement has a line
 *
 *   took KEY NR TIME DIVISOR [INTERRUPT=COUNT]...
 *
 * NR is the line of what the plugin ci/count.c counted meanwhile. TIME is in
 * instructions where the clock counts instructions (QEMU -icount shift=0), else in
 * nanoseconds. A key may come several times. Interrupts are those of all CPUs.
 * Anything else is a line "value KEY N".
 *
 * usage: bench SCENARIO [instructions]
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define HUGEPAGES "/sys/kernel/mm/hugepages/hugepages-%lukB/%s"
#define KB_2M 2048ul
#define KB_1G 1048576ul
#define TURNS 9		/* of what is over at once */

/* Of gup_test.c, which exports no header. */
struct gup_test {
	uint64_t get_delta_usec;
	uint64_t put_delta_usec;
	uint64_t addr;
	uint64_t size;
	uint32_t nr_pages_per_call;
	uint32_t gup_flags;
	uint32_t test_flags;
	uint32_t which_pages[8];
};
#define GUP_FAST_BENCHMARK _IOWR('g', 1, struct gup_test)

static bool instructions, several_cpus;

__attribute__((noreturn, format(printf, 1, 2)))
static void die(const char *fmt, ...)
{
	va_list ap;

	printf("error ");
	va_start(ap, fmt);
	vprintf(fmt, ap);
	va_end(ap);
	printf("\n");
	fflush(stdout);
	exit(1);
}

/* Since the machine was switched on, where that can be had. */
static uint64_t counter(void)
{
#if defined(__x86_64__)
	uint32_t low, high;

	asm volatile("lfence; rdtsc" : "=a"(low), "=d"(high) : : "memory");
	return (uint64_t)high << 32 | low;
#elif defined(__aarch64__)
	uint64_t ticks, hz;

	asm volatile("isb; mrs %0, cntvct_el0; mrs %1, cntfrq_el0"
		     : "=r"(ticks), "=r"(hz) : : "memory");
	return (unsigned __int128)ticks * 1000000000 / hz;
#else
	die("instructions cannot be read on this architecture");
#endif
}

static uint64_t now(void)
{
	struct timespec ts;

	if (instructions)
		return counter();
	clock_gettime(CLOCK_MONOTONIC_RAW, &ts);
	return (uint64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

static void result(const char *key, int64_t value)
{
	printf("value %s %lld\n", key, (long long)value);
}

static void read_file(const char *path, char *text, size_t size)
{
	int fd = open(path, O_RDONLY);
	size_t done = 0;
	ssize_t n;

	if (fd < 0)
		die("%s: %s", path, strerror(errno));
	while (done < size - 1 && (n = read(fd, text + done, size - 1 - done)) > 0)
		done += n;
	text[done] = '\0';
	close(fd);
}

/* The sum of the numbers behind @word at the start of a line, of all such lines. */
static uint64_t sum(const char *path, const char *word)
{
	static char text[1 << 18];
	const size_t length = strlen(word);
	uint64_t total = 0;
	char *line, *rest;

	read_file(path, text, sizeof(text));
	for (line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
		line += strspn(line, " ");
		if (strncmp(line, word, length) || !strchr(" :", line[length]))
			continue;
		for (line += length + 1; ; ) {
			line += strspn(line, " ");
			if (!isdigit(*line))
				break;
			total += strtoull(line, &line, 10);
		}
	}
	return total;
}

static uint64_t memfree(void) { return sum("/proc/meminfo", "MemFree"); }
static uint64_t page_tables(void) { return sum("/proc/meminfo", "PageTables"); }
static uint64_t pcp_pages(void) { return sum("/proc/zoneinfo", "count"); }

static uint64_t memmap_pages(void)
{
	return sum("/proc/vmstat", "nr_memmap_pages") +
	       sum("/proc/vmstat", "nr_memmap_boot_pages");
}

static uint64_t pool_file(unsigned long kb, const char *name)
{
	char path[128], text[32];

	snprintf(path, sizeof(path), HUGEPAGES, kb, name);
	read_file(path, text, sizeof(text));
	return strtoull(text, NULL, 10);
}


/* What other CPUs are interrupted with, out of /proc/interrupts. */
static const struct interrupt {
	const char *name, *x86, *arm64;
} interrupts[] = {
	{ "ipi-tlb", "TLB", NULL },
	{ "ipi-call", "CAL", "IPI1" },
	{ "ipi-resched", "RES", "IPI0" },
};
#define NR_INTERRUPTS	(sizeof(interrupts) / sizeof(*interrupts))

static void read_interrupts(uint64_t *counts)
{
	for (unsigned int i = 0; i < NR_INTERRUPTS; i++) {
		counts[i] = 0;
#if defined(__x86_64__)
		counts[i] = sum("/proc/interrupts", interrupts[i].x86);
#else
		if (interrupts[i].arm64)
			counts[i] = sum("/proc/interrupts", interrupts[i].arm64);
#endif
	}
}

/*
 * Instructions that do nothing and that nobody else uses, for the plugin. Keep
 * together with mark() in ci/count.c.
 */
#if defined(__x86_64__)
#define MARK_BEGIN()	asm volatile(".byte 0x0f,0x1f,0x84,0x00,0x01,0x48,0x56,0x4f" : : : "memory")
#define MARK_END()	asm volatile(".byte 0x0f,0x1f,0x84,0x00,0x02,0x48,0x56,0x4f" : : : "memory")
#else
#define MARK_BEGIN()	asm volatile("movz xzr, #0x4857" : : : "memory")
#define MARK_END()	asm volatile("movz xzr, #0x4858" : : : "memory")
#endif

static struct {
	uint64_t nr, start, took, interrupts[NR_INTERRUPTS];
} measurement;

static void begin(void)
{
	if (several_cpus)
		read_interrupts(measurement.interrupts);
	MARK_BEGIN();
	measurement.start = now();
}

static void end(void)
{
	uint64_t counts[NR_INTERRUPTS];

	measurement.took = now() - measurement.start;
	MARK_END();
	measurement.nr++;
	if (!several_cpus)
		return;
	/* A CPU that has only been asked is not one that has come yet. */
	usleep(20000);
	read_interrupts(counts);
	for (unsigned int i = 0; i < NR_INTERRUPTS; i++)
		measurement.interrupts[i] = counts[i] - measurement.interrupts[i];
}

/* What was between the last begin() and end(), which was done @divisor times. */
static void took(const char *key, uint64_t divisor)
{
	printf("took %s %llu %llu %llu", key, (unsigned long long)measurement.nr,
	       (unsigned long long)measurement.took, (unsigned long long)divisor);
	for (unsigned int i = 0; several_cpus && i < NR_INTERRUPTS; i++)
		printf(" %s=%llu", interrupts[i].name,
		       (unsigned long long)measurement.interrupts[i]);
	printf("\n");
}

/* Writes @value, and measures that. */
static void store(const char *path, unsigned long value)
{
	char text[32];
	int fd, length;

	fd = open(path, O_WRONLY);
	if (fd < 0)
		die("%s: %s", path, strerror(errno));
	length = snprintf(text, sizeof(text), "%lu", value);
	begin();
	if (write(fd, text, length) != length)
		die("%s: writing %lu: %s", path, value, strerror(errno));
	end();
	close(fd);
}

static void store_pool(unsigned long kb, const char *name, unsigned long value)
{
	char path[128];

	snprintf(path, sizeof(path), HUGEPAGES, kb, name);
	store(path, value);
}

static void resize(unsigned long kb, unsigned long pages)
{
	store_pool(kb, "nr_hugepages", pages);
	if (pool_file(kb, "nr_hugepages") != pages)
		die("%llu huge pages of %lu kB instead of %lu",
		    (unsigned long long)pool_file(kb, "nr_hugepages"), kb, pages);
}

static const char *const hvo_path = "/proc/sys/vm/hugetlb_optimize_vmemmap";

static bool hvo_is_on(void)
{
	char text[8] = "0";

	if (!access(hvo_path, R_OK))
		read_file(hvo_path, text, sizeof(text));
	return *text != '0';
}

static void hvo(bool on)
{
	int fd = open(hvo_path, O_WRONLY);

	if (fd < 0)
		return;
	if (write(fd, on ? "1" : "0", 1) != 1)
		die("%s: %s", hvo_path, strerror(errno));
	close(fd);
}

/*
 * Free memory that is in pieces of at least 2 MB, in kB. Allocating a gigantic
 * page empties the per-cpu lists.
 */
static uint64_t large_free(bool optimize)
{
	const unsigned long page_kb = sysconf(_SC_PAGESIZE) / 1024;
	static char text[1 << 14];
	uint64_t total = 0;
	char *line, *rest;

	hvo(false);
	resize(KB_1G, 1);
	resize(KB_1G, 0);
	hvo(optimize);
	read_file("/proc/buddyinfo", text, sizeof(text));
	for (line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
		unsigned long kb = page_kb;
		char *word = strstr(line, "zone"), *end;

		word += strlen("zone") + strspn(word + strlen("zone"), " ");
		word += strcspn(word, " ");
		for (;; kb *= 2) {
			unsigned long n = strtoul(word, &end, 10);

			if (end == word)
				break;
			if (kb >= KB_2M)
				total += n * kb;
			word = end;
		}
	}
	return total;
}

/*
 * A pool that grows and shrinks, twice: the first time the vmemmap is split.
 * Between the writes nothing is done that would help memory to get where it
 * belongs.
 */
static void pool(unsigned long kb, unsigned long pages, const char *what)
{
	const unsigned long page_kb = sysconf(_SC_PAGESIZE) / 1024;
	uint64_t free0, tables0, memmap0, large0, free1, memmap1, pcp1;
	const bool optimize = hvo_is_on();
	char key[64];

#define KEY(name) (snprintf(key, sizeof(key), "%s-%s", name, what), key)
	large0 = large_free(optimize);
	memmap0 = memmap_pages();
	tables0 = page_tables();
	free0 = memfree();

	resize(kb, pages);
	free1 = memfree();
	pcp1 = pcp_pages();
	memmap1 = memmap_pages();
	took(KEY("grow"), 1);
	result(KEY("freed-kb"), (memmap0 - memmap1) * page_kb);
	result(KEY("memfree-kb"), free1 + kb * pages - free0);
	result(KEY("pcp-pages"), pcp1);

	resize(kb, 0);
	took(KEY("shrink"), 1);
	result(KEY("drift-pages"), memmap_pages() - memmap0);

	resize(kb, pages);
	took(KEY("grow-again"), 1);
	resize(kb, 0);
	took(KEY("shrink-again"), 1);

	result(KEY("large-free-lost-kb"), large0 - large_free(optimize));
	result(KEY("pagetables-kb"), page_tables() - tables0);
#undef KEY
}

static void demote(void)
{
	const unsigned long pages = 2;
	char path[128];
	int fd;

	resize(KB_1G, pages);
	/* arm64 has sizes in between, and takes the next smaller one by default. */
	snprintf(path, sizeof(path), HUGEPAGES, KB_1G, "demote_size");
	fd = open(path, O_WRONLY);
	if (fd < 0 || write(fd, "2048kB", 6) != 6)
		die("%s: %s", path, strerror(errno));
	close(fd);
	store_pool(KB_1G, "demote", pages);
	if (pool_file(KB_2M, "nr_hugepages") != pages * KB_1G / KB_2M)
		die("%lu pages of 1 GB were not demoted", pages);
	took("demote-1G", 1);
	resize(KB_2M, 0);
}

static void *map_huge(size_t size, int flags)
{
	void *p = mmap(NULL, size, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | flags, -1, 0);

	if (p == MAP_FAILED)
		die("mmap: %s", strerror(errno));
	return p;
}

/* Filled, and in base pages. */
static char *map_small(size_t size)
{
	char *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		die("mmap: %s", strerror(errno));
	madvise(p, size, MADV_NOHUGEPAGE);
	memset(p, 1, size);
	return p;
}

/* One page more and one less in the pool, and one that a page fault allocates. */
static void single(void)
{
	const size_t size = KB_2M * 1024;

	resize(KB_2M, 1);
	for (int i = 0; i < TURNS; i++) {
		resize(KB_2M, 2);
		took("one-more-2M", 1);
		resize(KB_2M, 1);
		took("one-less-2M", 1);
	}
	resize(KB_2M, 0);

	store_pool(KB_2M, "nr_overcommit_hugepages", 1);
	for (int i = 0; i < TURNS; i++) {
		/* No reservation: it is the fault that allocates. */
		volatile char *p = map_huge(size, MAP_NORESERVE);

		begin();
		*p = 1;
		end();
		took("fault-surplus-2M", 1);
		begin();
		munmap((void *)p, size);
		/* A worker may free it. */
		while (pool_file(KB_2M, "nr_hugepages"))
			usleep(1000);
		end();
		if (several_cpus)
			took("free-surplus-2M", 1);
	}
	store_pool(KB_2M, "nr_overcommit_hugepages", 0);
}

/* What mmap() reserves and the pool does not have is allocated at once, as a list. */
static void reserve(void)
{
	const unsigned long pages = 100;
	const size_t size = pages * KB_2M * 1024;

	store_pool(KB_2M, "nr_overcommit_hugepages", pages);
	for (int i = 0; i < TURNS; i++) {
		void *p;

		begin();
		p = map_huge(size, 0);
		end();
		took("reserve-surplus-2M", pages);
		munmap(p, size);
		while (pool_file(KB_2M, "nr_hugepages"))
			usleep(1000);
	}
	store_pool(KB_2M, "nr_overcommit_hugepages", 0);
}

static void pread_all(const char *path, void *buffer, size_t size, off_t where)
{
	int fd = open(path, O_RDONLY);
	size_t done = 0;

	if (fd < 0)
		die("%s: %s", path, strerror(errno));
	begin();
	while (done < size) {
		/* Some files give a page at a time. */
		ssize_t n = pread(fd, (char *)buffer + done, size - done, where + done);

		if (n <= 0)
			die("%s: %s", path, n ? strerror(errno) : "too short");
		done += n;
	}
	end();
	close(fd);
}

/* Pages that are two processes' and in the swap, where each of them finds them. */
static void swap_in(void)
{
	const size_t pages = 1024, page = sysconf(_SC_PAGESIZE);
	int to_child[2], to_parent[2];
	char *p, byte = 0;
	pid_t child;

	if (pipe(to_child) || pipe(to_parent))
		die("pipe: %s", strerror(errno));
	p = map_small(pages * page);
	if (madvise(p, pages * page, MADV_PAGEOUT))
		die("MADV_PAGEOUT: %s", strerror(errno));
	if (sum("/proc/vmstat", "pswpout") < pages)
		die("MADV_PAGEOUT did not write %zu pages to the swap", pages);
	fflush(stdout);
	child = fork();
	if (child < 0)
		die("fork: %s", strerror(errno));
	if (!child) {
		if (read(to_child[0], &byte, 1) != 1)
			_exit(1);
		/* The parent's measurement was in between. */
		measurement.nr++;
		begin();
		for (size_t i = 0; i < pages; i++)
			byte += *(volatile char *)(p + i * page);
		end();
		took("swap-cache-page", pages);
		fflush(stdout);
		_exit(write(to_parent[1], &byte, 1) != 1);
	}
	begin();
	for (size_t i = 0; i < pages; i++)
		byte += *(volatile char *)(p + i * page);
	end();
	took("swap-in-page", pages);
	fflush(stdout);
	measurement.nr++;
	if (write(to_child[1], &byte, 1) != 1 || read(to_parent[0], &byte, 1) != 1 ||
	    waitpid(child, NULL, 0) != child)
		die("the child failed");
	munmap(p, pages * page);
}

/*
 * Memory of which every second page is free. It is where compaction starts, since
 * meanwhile all other memory is in the pool.
 */
static void compaction(void)
{
	const size_t size = 256 << 20, page = sysconf(_SC_PAGESIZE);
	const char *path = "/proc/sys/vm/compact_memory";
	uint64_t before;
	char *p;

	resize(KB_2M, (memfree() - 2 * (size >> 10)) / KB_2M);
	p = map_small(size);
	resize(KB_2M, 0);
	for (size_t i = 0; i < size; i += 2 * page)
		madvise(p + i, page, MADV_DONTNEED);
	before = sum("/proc/vmstat", "compact_isolated");
	store(path, 1);
	before = sum("/proc/vmstat", "compact_isolated") - before;
	if (!before)
		die("compaction has isolated nothing");
	took("compact-isolated-page", before);
	munmap(p, size);
}

/*
 * What looks at all struct pages: at those above 1 GB of memory, for the most part free.
 * The memory of QEMU's arm64 machine starts at 1 GB.
 */
static void walk(void)
{
	static uint64_t idle[4096], flags[1 << 15];
#if defined(__x86_64__)
	const off_t where = (1ul << 30) / sysconf(_SC_PAGESIZE);
#else
	const off_t where = (2ul << 30) / sysconf(_SC_PAGESIZE);
#endif

	for (int i = 0; i < TURNS; i++) {
		pread_all("/sys/kernel/mm/page_idle/bitmap", idle, sizeof(idle), where / 8);
		took("page-idle-pfn", sizeof(idle) * 8);
		pread_all("/proc/kpageflags", flags, sizeof(flags), where * 8);
		took("kpageflags-pfn", sizeof(flags) / 8);
	}
}

/* folio_try_get() and its like, where most of it is done. */
static void references(void)
{
	const unsigned long rounds = 1000, pages = 1024;
	const size_t size = pages * sysconf(_SC_PAGESIZE);
	char byte, *p;
	int fd;

	fd = open("/tmp/bench.data", O_RDWR | O_CREAT | O_TRUNC, 0600);
	if (fd < 0 || write(fd, "x", 1) != 1)
		die("/tmp/bench.data: %s", strerror(errno));
	for (int i = 0; i < TURNS; i++) {
		begin();
		for (unsigned long n = 0; n < rounds; n++)
			if (pread(fd, &byte, 1, 0) != 1)
				die("pread: %s", strerror(errno));
		end();
		took("pread-byte-tmpfs", rounds);
	}
	close(fd);

	p = map_small(size);
	fd = open("/sys/kernel/debug/gup_test", O_RDWR);
	if (fd < 0)
		die("no gup_test: %s", strerror(errno));
	for (int i = 0; i < TURNS; i++) {
		struct gup_test gup = {
			.addr = (uintptr_t)p,
			.size = size,
			.nr_pages_per_call = pages,
			.gup_flags = 1,
		};

		begin();
		if (ioctl(fd, GUP_FAST_BENCHMARK, &gup))
			die("gup_test: %s", strerror(errno));
		end();
		took("gup-fast-page", pages);
	}
	close(fd);
	munmap(p, size);

	walk();
	swap_in();
	compaction();
}

/* A huge page goes from one node to the other, for which one has to be allocated. */
static void migrate(void)
{
	const size_t size = KB_2M * 1024;
	char *p;

	resize(KB_2M, 1);
	p = map_huge(size, 0);
	*p = 1;
	for (int i = 0; i < 2 * TURNS; i++) {
		void *page = p;
		int node, status = -1;

		if (syscall(SYS_move_pages, 0, 1ul, &page, NULL, &status, 0) || status < 0)
			die("the node of a huge page is not known (%d)", status);
		node = !status;
		begin();
		if (syscall(SYS_move_pages, 0, 1ul, &page, &node, &status, 0))
			die("move_pages: %s", strerror(errno));
		end();
		if (status != node)
			die("a huge page was not moved (%d)", status);
		took("migrate-2M", 1);
	}
	munmap(p, size);
	resize(KB_2M, 0);
}

static uint64_t pfn_of(const void *p)
{
	const size_t page = sysconf(_SC_PAGESIZE);
	uint64_t entry;
	int fd = open("/proc/self/pagemap", O_RDONLY);

	if (fd < 0 || pread(fd, &entry, 8, (uintptr_t)p / page * 8) != 8)
		die("/proc/self/pagemap: %s", strerror(errno));
	close(fd);
	return entry & ((1ull << 55) - 1);
}

/*
 * alloc_contig_range() of 1 GB that is full of free huge pages. All memory is made
 * huge pages, those in the area are kept in the pool, and the others are freed: into
 * that the free ones of the area have to be replaced.
 */
static void contig(void)
{
	const char *area = "/sys/kernel/debug/cma/hugetlb0/";
	const size_t size = KB_2M * 1024;
	uint64_t base, count, pages, inside = 0;
	char path[128], text[32];
	char *p;

	snprintf(path, sizeof(path), "%sbase_pfn", area);
	read_file(path, text, sizeof(text));
	base = strtoull(text, NULL, 0);
	snprintf(path, sizeof(path), "%scount", area);
	read_file(path, text, sizeof(text));
	count = strtoull(text, NULL, 0);

	pages = memfree() / KB_2M - 100;
	resize(KB_2M, pages);
	store_pool(KB_2M, "nr_overcommit_hugepages", pages);
	p = map_huge(pages * size, 0);
	for (uint64_t i = 0; i < pages; i++)
		p[i * size] = 1;
	/* All of them are surplus now, and whatever is unmapped is freed. */
	store_pool(KB_2M, "nr_hugepages", 0);
	for (uint64_t i = 0; i < pages; i++) {
		const uint64_t pfn = pfn_of(p + i * size);

		if (pfn >= base && pfn < base + count)
			inside++;
		else
			munmap(p + i * size, size);
	}
	while (pool_file(KB_2M, "nr_hugepages") != inside)
		usleep(1000);
	/* Now they belong to the pool, and so stay in it. */
	resize(KB_2M, inside);
	munmap(p, pages * size);
	result("contig-free-2M", inside);
	snprintf(path, sizeof(path), "%salloc", area);
	store(path, count);
	took("contig-1G", 1);
	if (pool_file(KB_2M, "nr_hugepages") != inside)
		die("%llu huge pages instead of %llu",
		    (unsigned long long)pool_file(KB_2M, "nr_hugepages"),
		    (unsigned long long)inside);
}

int main(int argc, char **argv)
{
	const char *scenario = argc > 1 ? argv[1] : "";

	instructions = argc > 2 && !strcmp(argv[2], "instructions");
	several_cpus = sysconf(_SC_NPROCESSORS_ONLN) > 1;
	if (!strcmp(scenario, "boot")) {
		/* Only the counter knows about the time before there are clocks. */
		measurement.took = instructions ? counter() : 0;
		if (instructions)
			took("boot", 1);
		result("boot-pages", pool_file(KB_1G, "nr_hugepages"));
		return 0;
	}

	if (pool_file(KB_2M, "nr_hugepages") || pool_file(KB_1G, "nr_hugepages"))
		die("there are huge pages in the pools, which are emptied here");
	/* What is still being set up after boot is not what is measured. */
	sleep(1);
	begin();
	end();
	if (measurement.took >> 63)
		die("the clock goes backwards");

	if (!strcmp(scenario, "2M")) {
		pool(KB_2M, 2048, "2M");
	} else if (!strcmp(scenario, "dimm")) {
		pool(KB_2M, 2048, "dimm");
	} else if (!strcmp(scenario, "init")) {
		pool(KB_2M, 512, "init");
	} else if (!strcmp(scenario, "1G")) {
		pool(KB_1G, 3, "1G");
		demote();
	} else if (!strcmp(scenario, "single")) {
		single();
		reserve();
	} else if (!strcmp(scenario, "references")) {
		references();
	} else if (!strcmp(scenario, "walk")) {
		walk();
	} else if (!strcmp(scenario, "migrate")) {
		migrate();
	} else if (!strcmp(scenario, "contig")) {
		contig();
	} else {
		die("usage: bench SCENARIO [instructions]: no scenario '%s'", scenario);
	}
	return 0;
}
