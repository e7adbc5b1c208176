// SPDX-License-Identifier: GPL-2.0
/*
 * In the guest, with two CPUs: on CPU 1 somebody writes to the struct page of a
 * page that is not theirs, and is held right before that write by ci/hold-vcpu.
 * On CPU 0, which keeps the time, the page is freed and becomes part of a huge
 * page meanwhile.
 *
 * Usage: race page_idle | hwpoison | compaction | swap_cache
 *
 * swap_cache wants a swap device.
 *
 * Exits with 0 when all that has happened, and with 3 when it has not.
 */
#include "guest.h"
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include "../../guest/slab.h"

#define KPF_COMPOUND_TAIL	16
#define KPF_HUGE		17
#define KPF_HWPOISON		19
#define DMA_END			(16UL << 20)
/* Where the pages are: what "--index" of ci/hold-vcpu goes by */
#define MEM			((char *)0x600000000000)
/* What "--tell" goes by: the stranger is held */
#define HELD			((volatile char *)0x500000000000)

static uint64_t read_u64(const char *path, uint64_t at)
{
	int fd = open(path, O_RDONLY);
	uint64_t v = 0;

	if (fd < 0 || pread(fd, &v, sizeof(v), at * sizeof(v)) != sizeof(v))
		die(path);
	close(fd);
	return v;
}

static unsigned long meminfo_kb(const char *key)
{
	FILE *f = fopen("/proc/meminfo", "r");
	unsigned long kb = 0;
	char line[128];

	if (!f)
		die("/proc/meminfo");
	while (fgets(line, sizeof(line), f))
		if (!strncmp(line, key, strlen(key)))
			kb = strtoul(line + strlen(key), NULL, 10);
	fclose(f);
	return kb;
}

/*
 * How many huge pages there are as the buddy allocator has it: all of them are to be
 * taken, and nothing is to be compacted for more, which would move pages to ours.
 */
static unsigned long free_huge(unsigned long nr)
{
	FILE *f = fopen("/proc/buddyinfo", "r");
	unsigned long n, sum = 0, size = 1;
	char line[256], *at, *end;

	if (!f)
		die("/proc/buddyinfo");
	while (fgets(line, sizeof(line), f)) {
		at = strstr(line, "zone ");
		if (!at)
			die("/proc/buddyinfo");
		at += strlen("zone ");
		at += strspn(at, " ");
		at += strcspn(at, " ");
		for (size = 1; n = strtoul(at, &end, 10), end != at; size *= 2, at = end)
			sum += size >= nr ? n * (size / nr) : 0;
	}
	fclose(f);
	return sum;
}

/*
 * Pages in the lists of CPUs keep blocks from being free. Memory failure empties them
 * before it looks at a page: let it look at one that it can do nothing about.
 */
static void drain_lists(unsigned long pfn, unsigned long page)
{
	int fd = open("/sys/devices/system/memory/soft_offline_page", O_WRONLY);
	char text[32];

	snprintf(text, sizeof(text), "%lu", slab_near(pfn) * page);
	if (fd < 0 || write(fd, text, strlen(text)) >= 0)
		die("soft_offline_page");
	close(fd);
}

static void write_num(const char *path, unsigned long n)
{
	FILE *f = fopen(path, "w");

	if (!f || fprintf(f, "%lu", n) < 0 || fclose(f))
		die(path);
}

/* CPU 1: the write that is held. */
static void stranger(int from, const char *how)
{
	unsigned long pfn;

	pin(1);
	if (read(from, &pfn, sizeof(pfn)) != sizeof(pfn))
		die("no pfn");
	if (!strcmp(how, "page_idle")) {
		read_u64("/sys/kernel/mm/page_idle/bitmap", pfn / 64);
	} else if (!strcmp(how, "compaction")) {
		write_num("/proc/sys/vm/compact_memory", 1);
	} else {
		/* A huge page that is being made may be busy: that is no failure. */
		FILE *f = fopen("/sys/devices/system/memory/hard_offline_page", "w");

		if (!f || fprintf(f, "%lu", pfn * sysconf(_SC_PAGESIZE)) < 0)
			die("hard_offline_page");
		printf("race: hard_offline_page: %s\n", fclose(f) ? strerror(errno) : "done");
	}
	exit(0);
}

static volatile bool came_back;

static void *touch(void *page)
{
	pin(1);
	*(volatile char *)page = 1;
	came_back = true;
	return NULL;
}

/* Leave a page in the swap cache, where its only reference is that of the cache. */
static void swap_out(char *page, unsigned long size)
{
	struct iovec iov = { page, 16 };
	uint64_t v;
	int fds[2];

	if (pipe(fds) || vmsplice(fds[1], &iov, 1, 0) != 16)
		die("vmsplice");
	if (madvise(page, size, MADV_PAGEOUT))
		die("MADV_PAGEOUT");
	close(fds[0]);
	close(fds[1]);
	v = read_u64("/proc/self/pagemap", (uintptr_t)page / size);
	if (!(v >> 62 & 1))
		die("the page is not swapped out");
}

static bool is(const char *how, const char *what) { return !strcmp(how, what); }

int main(int argc, char **argv)
{
	const unsigned long page = sysconf(_SC_PAGESIZE);
	const unsigned long huge = meminfo_kb("Hugepagesize:") * 1024;
	const unsigned long nr = huge / page;
	unsigned long len, pfn = ~0UL, run = 0, i, j;
	/* The first page that is not in the vmemmap page that HVO keeps */
	const unsigned long first = page / 64;
	const char *how = argc == 2 ? argv[1] : "";
	int pipefd[2], status = 0;
	struct timespec ts;
	uint64_t flags, head;
	pid_t child = -1;
	pthread_t thread;
	char *mem, *holes;

	setvbuf(stdout, NULL, _IONBF, 0);
	if (!is(how, "page_idle") && !is(how, "hwpoison") && !is(how, "compaction") &&
	    !is(how, "swap_cache"))
		die("usage: race page_idle | hwpoison | compaction | swap_cache");

	if (mmap((void *)HELD, page, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS |
		 MAP_FIXED_NOREPLACE | MAP_POPULATE, -1, 0) != HELD)
		die("mmap");
	/* Before there is memory that the child would share. */
	if (pipe(pipefd))
		die("pipe");
	if (!is(how, "swap_cache")) {
		child = fork();
		if (!child)
			stranger(pipefd[0], how);
	}
	pin(0);

	/* Pages of their own; enough to empty the per-cpu lists of the first. */
	mem = MEM;
	len = 64 * huge;
	if (mmap(mem, len, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) != mem)
		die("mmap");
	madvise(mem, len, MADV_NOHUGEPAGE);
	memset(mem, 1, len);

	/*
	 * A whole huge page of it: where the pages follow each other. The lowest one,
	 * since compaction starts there, but not in ZONE_DMA, of which the pool gets
	 * nothing.
	 */
	for (i = 0; i + nr <= len / page; i++) {
		uint64_t at = 0, v;

		for (j = 0; j < nr; j++) {
			v = read_u64("/proc/self/pagemap", (uintptr_t)mem / page + i + j) &
			    ((1ULL << 55) - 1);
			if (!j)
				at = v;
			if (at % nr || v != at + j)
				break;
		}
		if (j == nr && at < pfn && at >= DMA_END / page) {
			pfn = at;
			run = i;
		}
		i += j == nr ? nr - 1 : 0;
	}
	if (pfn == ~0UL)
		die("no pages in a row");
	printf("race: pfn 0x%lx\n", pfn);

	/*
	 * Free pages in between others: compaction takes no free page of a block that is
	 * free as a whole, and what has to stay free shall not be a huge page. After the others, since compaction
	 * would move what is before them.
	 */
	holes = mmap(NULL, 8 * huge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (holes == MAP_FAILED)
		die("mmap");
	madvise(holes, 8 * huge, MADV_NOHUGEPAGE);
	memset(holes, 1, 8 * huge);
	for (i = 0; i < 8 * nr; i += 2)
		madvise(holes + i * page, page, MADV_DONTNEED);

	if (is(how, "page_idle")) {
		/* In the middle; that is all of them that it looks at. */
		pfn += nr / 2;
	} else if (is(how, "hwpoison")) {
		/* It has to meet a free page. */
		pfn += nr / 2;
		munmap(mem, len);
	} else if (is(how, "compaction")) {
		/* No others may be met, and none before them: it holds a lock then. */
		pfn += first;
		munmap(mem, (run + first) * page);
		munmap(mem + (run + nr) * page, len - (run + nr) * page);
	} else {
		pfn += first;
		munmap(mem, (run + first) * page);
		munmap(mem + (run + first + 1) * page, len - (run + first + 1) * page);
		swap_out(mem + (run + first) * page, page);
	}

	if (child < 0 && pthread_create(&thread, NULL, touch, mem + (run + first) * page))
		die("pthread_create");
	if (write(pipefd[1], &pfn, sizeof(pfn)) != sizeof(pfn))
		die("write");
	while (!*HELD)
		if (child > 0 ? waitpid(child, &status, WNOHANG) : getppid() && came_back)
			die("nobody held the stranger");

	/* Not munmap(), which would wait for the fault of the other thread. */
	if (madvise(mem + (run + first) * page, page, MADV_DONTNEED) && child < 0)
		die("MADV_DONTNEED");
	if (child > 0) {
		munmap(mem + run * page, huge);
		munmap(mem, len);
	}
	/* The first ones out of the per-cpu lists, by those that follow. */
	if (is(how, "compaction") || is(how, "swap_cache")) {
		char *more = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		if (more == MAP_FAILED)
			die("mmap");
		madvise(more, len, MADV_NOHUGEPAGE);
		memset(more, 1, len / 4);
		madvise(more, len, MADV_DONTNEED);
	}
	if (!is(how, "hwpoison"))
		drain_lists(pfn, page);
	write_num("/proc/sys/vm/nr_hugepages", free_huge(huge / page));
	/* For ci/hold-vcpu, which waits for that. */
	sched_rr_get_interval(0, &ts);
	printf("race: a pool of %lu huge pages\n", meminfo_kb("HugePages_Total:"));
	if (child < 0)
		pthread_join(thread, NULL);
	else
		waitpid(child, &status, 0);
	if (!WIFEXITED(status)) {
		printf("race: the stranger died of signal %d\n", WTERMSIG(status));
		return 3;
	}
	/* A poisoned page may have been taken out of the pool already. */
	flags = read_u64("/proc/kpageflags", pfn);
	head = read_u64("/proc/kpageflags", pfn / nr * nr);
	printf("race: the page is%s%s\n", flags & 1 << KPF_HUGE ? " huge" : "",
	       (flags | head) & 1 << KPF_HWPOISON ? " poisoned" : "");
	if (!is(how, "hwpoison") && ~flags & (1 << KPF_HUGE | 1 << KPF_COMPOUND_TAIL))
		die("the page is not in the pool");
	return WEXITSTATUS(status);
}
