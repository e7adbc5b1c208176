// SPDX-License-Identifier: GPL-2.0
/*
 * In the guest, with two CPUs: on CPU 1 somebody writes to the struct page of a
 * page that is not theirs, and is held right before that write by ci/hold-vcpu.
 * On CPU 0, which keeps the time, the page is freed and becomes part of a huge
 * page meanwhile.
 *
 * Usage: race page_idle | hwpoison
 *
 * Exits with 0 when all that has happened, and with 3 when it has not.
 */
#include "guest.h"
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/wait.h>

#define KPF_COMPOUND_TAIL	16
#define KPF_HUGE		17
#define KPF_HWPOISON		19
#define POLLS			50000	/* a quarter of a second or so under TCG */

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
	} else {
		/* A huge page that is being made may be busy: that is no failure. */
		FILE *f = fopen("/sys/devices/system/memory/hard_offline_page", "w");

		if (!f || fprintf(f, "%lu", pfn * sysconf(_SC_PAGESIZE)) < 0)
			die("hard_offline_page");
		printf("race: hard_offline_page: %s\n", fclose(f) ? strerror(errno) : "done");
	}
	exit(0);
}

int main(int argc, char **argv)
{
	const unsigned long page = sysconf(_SC_PAGESIZE);
	const unsigned long huge = meminfo_kb("Hugepagesize:") * 1024;
	const unsigned long nr = huge / page;
	unsigned long len, pfn = 0, i, j = 0, poll;
	int pipefd[2], status;
	struct timespec ts;
	uint64_t flags, head;
	bool while_free;
	pid_t child;
	char *mem;

	setvbuf(stdout, NULL, _IONBF, 0);
	if (argc != 2 || (strcmp(argv[1], "page_idle") && strcmp(argv[1], "hwpoison")))
		die("usage: race page_idle | hwpoison");
	/* page_idle looks at pages in use, hwpoison has to meet a free one. */
	while_free = !strcmp(argv[1], "hwpoison");

	/* Before there is memory that the child would share. */
	if (pipe(pipefd))
		die("pipe");
	child = fork();
	if (!child)
		stranger(pipefd[0], argv[1]);
	pin(0);

	/* Pages of their own; enough to empty the per-cpu lists of the first. */
	len = 64 * huge;
	mem = mmap(NULL, len + huge, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (mem == MAP_FAILED)
		die("mmap");
	mem = (char *)(((uintptr_t)mem + huge - 1) & -huge);
	madvise(mem, len, MADV_NOHUGEPAGE);
	memset(mem, 1, len);

	/* A whole huge page of it: where the pages follow each other. */
	for (i = 0; i + 2 * nr < len / page; i++) {
		for (j = 0; j < nr; j++) {
			uint64_t v = read_u64("/proc/self/pagemap", (uintptr_t)mem / page + i + j) &
				     ((1ULL << 55) - 1);

			if (!j)
				pfn = v;
			if (pfn % nr || v != pfn + j)
				break;
		}
		if (j == nr)
			break;
	}
	if (j != nr)
		die("no pages in a row");
	/* In the middle: not in the vmemmap page that HVO keeps. */
	pfn += nr / 2;
	printf("race: pfn 0x%lx\n", pfn);

	if (while_free)
		munmap(mem, len);
	if (write(pipefd[1], &pfn, sizeof(pfn)) != sizeof(pfn))
		die("write");
	/* Long enough for the stranger to get there. */
	for (poll = 0; poll < POLLS; poll++)
		if (waitpid(child, &status, WNOHANG))
			die("nobody held the stranger");

	/* The first ones out of the per-cpu lists, by those that follow. */
	if (!while_free) {
		munmap(mem + i * page, huge);
		munmap(mem, len);
	}
	write_num("/proc/sys/vm/nr_hugepages", meminfo_kb("MemFree:") / 10 * 9 * 1024 / huge);
	/* For ci/hold-vcpu, which waits for that. */
	sched_rr_get_interval(0, &ts);
	printf("race: a pool of %lu huge pages\n", meminfo_kb("HugePages_Total:"));
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
	if (!while_free && ~flags & (1 << KPF_HUGE | 1 << KPF_COMPOUND_TAIL))
		die("the page is not in the pool");
	return WEXITSTATUS(status);
}
