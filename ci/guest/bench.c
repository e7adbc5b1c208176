// SPDX-License-Identifier: GPL-2.0
/*
 * Runs in the guest of tools/bench: how much what HugeTLB pools are made for
 * costs, and what that leaves behind in memory. Prints "key value" lines; times
 * are instructions where the clock counts instructions (QEMU -icount shift=0),
 * else nanoseconds.
 *
 * usage: bench 2M|1G|single|boot [instructions]
 */
#define _GNU_SOURCE
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
#include <time.h>
#include <unistd.h>

#define HUGEPAGES "/sys/kernel/mm/hugepages/hugepages-%lukB/%s"
#define KB_2M 2048ul
#define KB_1G 1048576ul
#define MEDIAN_OF 9

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

static bool instructions;

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

static void result(const char *key, uint64_t value)
{
	printf("%s %llu\n", key, (unsigned long long)value);
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

/* The sum of the numbers behind @word at the start of a line. */
static uint64_t sum(const char *path, const char *word)
{
	static char text[1 << 18];
	const size_t length = strlen(word);
	uint64_t total = 0;
	char *line, *rest;

	read_file(path, text, sizeof(text));
	for (line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
		line += strspn(line, " ");
		if (!strncmp(line, word, length) && strchr(" :", line[length]))
			total += strtoull(line + length + 1, NULL, 10);
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

/* Writes @value and returns what that took. */
static uint64_t store(unsigned long kb, const char *name, unsigned long value)
{
	char path[128], text[32];
	int fd, length;
	uint64_t start;

	snprintf(path, sizeof(path), HUGEPAGES, kb, name);
	fd = open(path, O_WRONLY);
	if (fd < 0)
		die("%s: %s", path, strerror(errno));
	length = snprintf(text, sizeof(text), "%lu", value);
	start = now();
	if (write(fd, text, length) != length)
		die("%s: writing %lu: %s", path, value, strerror(errno));
	start = now() - start;
	close(fd);
	return start;
}

static uint64_t resize(unsigned long kb, unsigned long pages)
{
	uint64_t took = store(kb, "nr_hugepages", pages);

	if (pool_file(kb, "nr_hugepages") != pages)
		die("%llu huge pages of %lu kB instead of %lu",
		    (unsigned long long)pool_file(kb, "nr_hugepages"), kb, pages);
	return took;
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

static int smaller(const void *a, const void *b)
{
	const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

static uint64_t median(uint64_t *values)
{
	qsort(values, MEDIAN_OF, sizeof(*values), smaller);
	return values[MEDIAN_OF / 2];
}

/*
 * A pool that grows and shrinks, twice: the first time the vmemmap is split.
 * Between the writes nothing is done that would help memory to get where it
 * belongs.
 */
static void pool(unsigned long kb, unsigned long pages, const char *what)
{
	uint64_t free0, tables0, memmap0, large0, free1, memmap1;
	const bool optimize = hvo_is_on();
	char key[64];

	large0 = large_free(optimize);
	memmap0 = memmap_pages();
	tables0 = page_tables();
	free0 = memfree();

	snprintf(key, sizeof(key), "grow-%s", what);
	result(key, resize(kb, pages));

	free1 = memfree();
	memmap1 = memmap_pages();
	snprintf(key, sizeof(key), "freed-kb-%s", what);
	result(key, (memmap0 - memmap1) * (sysconf(_SC_PAGESIZE) / 1024));
	snprintf(key, sizeof(key), "memfree-kb-%s", what);
	printf("%s %lld\n", key, (long long)(free1 + kb * pages - free0));
	snprintf(key, sizeof(key), "pcp-pages-%s", what);
	result(key, pcp_pages());

	snprintf(key, sizeof(key), "shrink-%s", what);
	result(key, resize(kb, 0));
	snprintf(key, sizeof(key), "drift-pages-%s", what);
	printf("%s %lld\n", key, (long long)(memmap_pages() - memmap0));

	snprintf(key, sizeof(key), "grow-again-%s", what);
	result(key, resize(kb, pages));
	snprintf(key, sizeof(key), "shrink-again-%s", what);
	result(key, resize(kb, 0));

	snprintf(key, sizeof(key), "large-free-lost-kb-%s", what);
	printf("%s %lld\n", key, (long long)(large0 - large_free(optimize)));
	snprintf(key, sizeof(key), "pagetables-kb-%s", what);
	printf("%s %lld\n", key, (long long)(page_tables() - tables0));
}

static void demote(void)
{
	const unsigned long pages = 2;

	resize(KB_1G, pages);
	result("demote-1G", store(KB_1G, "demote", pages));
	if (pool_file(KB_2M, "nr_hugepages") != pages * KB_1G / KB_2M)
		die("%lu pages of 1 GB were not demoted", pages);
	resize(KB_2M, 0);
}

/* One page more and one less in the pool, and one allocated by a page fault. */
static void single(void)
{
	uint64_t more[MEDIAN_OF], less[MEDIAN_OF], fault[MEDIAN_OF];
	const size_t size = KB_2M * 1024;

	resize(KB_2M, 1);
	for (int i = 0; i < MEDIAN_OF; i++) {
		more[i] = resize(KB_2M, 2);
		less[i] = resize(KB_2M, 1);
	}
	result("one-more-2M", median(more));
	result("one-less-2M", median(less));
	resize(KB_2M, 0);

	store(KB_2M, "nr_overcommit_hugepages", 1);
	for (int i = 0; i < MEDIAN_OF; i++) {
		/* No reservation: it is the fault that allocates. */
		volatile char *p = mmap(NULL, size, PROT_READ | PROT_WRITE,
					MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | MAP_NORESERVE,
					-1, 0);
		uint64_t start;

		if (p == MAP_FAILED)
			die("mmap: %s", strerror(errno));
		start = now();
		*p = 1;
		fault[i] = now() - start;
		munmap((void *)p, size);
		/* A worker may free it. */
		while (pool_file(KB_2M, "nr_hugepages"))
			usleep(1000);
	}
	result("fault-surplus-2M", median(fault));
	store(KB_2M, "nr_overcommit_hugepages", 0);
}

/* folio_try_get() and its like, where most of it is done. */
static void references(void)
{
	const unsigned long rounds = 1000, pages = 1024;
	const size_t size = pages * sysconf(_SC_PAGESIZE);
	uint64_t values[MEDIAN_OF];
	static uint64_t idle[512];
	char byte, *p;
	int fd;

	fd = open("/tmp/bench.data", O_RDWR | O_CREAT | O_TRUNC, 0600);
	if (fd < 0 || write(fd, "x", 1) != 1)
		die("/tmp/bench.data: %s", strerror(errno));
	for (int i = 0; i < MEDIAN_OF; i++) {
		uint64_t start = now();

		for (unsigned long n = 0; n < rounds; n++)
			if (pread(fd, &byte, 1, 0) != 1)
				die("pread: %s", strerror(errno));
		values[i] = (now() - start) / rounds;
	}
	close(fd);
	result("pread-byte-tmpfs", median(values));

	p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED)
		die("mmap: %s", strerror(errno));
	madvise(p, size, MADV_NOHUGEPAGE);
	memset(p, 1, size);
	fd = open("/sys/kernel/debug/gup_test", O_RDWR);
	if (fd >= 0) {
		for (int i = 0; i < MEDIAN_OF; i++) {
			struct gup_test gup = {
				.addr = (uintptr_t)p,
				.size = size,
				.nr_pages_per_call = pages,
				.gup_flags = 1,
			};
			uint64_t start = now();

			if (ioctl(fd, GUP_FAST_BENCHMARK, &gup))
				die("gup_test: %s", strerror(errno));
			values[i] = (now() - start) / pages;
		}
		close(fd);
		result("gup-fast-page", median(values));
	}

	fd = open("/sys/kernel/mm/page_idle/bitmap", O_RDONLY);
	if (fd >= 0) {
		/* Memory above 64 MB, for the most part free. */
		const off_t where = (64 << 20) / sysconf(_SC_PAGESIZE) / 8;

		for (int i = 0; i < MEDIAN_OF; i++) {
			uint64_t start = now();

			if (pread(fd, idle, sizeof(idle), where) != sizeof(idle))
				die("page_idle: %s", strerror(errno));
			values[i] = (now() - start) / (sizeof(idle) * 8);
		}
		close(fd);
		result("page-idle-pfn", median(values));
	}
}

int main(int argc, char **argv)
{
	uint64_t start;

	instructions = argc > 2 && !strcmp(argv[2], "instructions");
	if (argc < 2)
		die("usage: bench SCENARIO [instructions]");
	if (!strcmp(argv[1], "boot")) {
		/* Only the counter knows about the time before there are clocks. */
		if (instructions)
			result("boot", counter());
		result("boot-pages", pool_file(KB_1G, "nr_hugepages"));
		return 0;
	}

	if (pool_file(KB_2M, "nr_hugepages") || pool_file(KB_1G, "nr_hugepages"))
		die("there are huge pages in the pools, which are emptied here");
	/* What is still being set up after boot is not what is measured. */
	sleep(1);
	start = now();
	if (now() < start)
		die("the clock goes backwards");

	if (!strcmp(argv[1], "2M")) {
		pool(KB_2M, 2048, "2M");
	} else if (!strcmp(argv[1], "dimm")) {
		pool(KB_2M, 2048, "dimm");
	} else if (!strcmp(argv[1], "1G")) {
		pool(KB_1G, 3, "1G");
		demote();
	} else if (!strcmp(argv[1], "single")) {
		single();
		references();
	} else {
		die("no scenario '%s'", argv[1]);
	}
	return 0;
}
