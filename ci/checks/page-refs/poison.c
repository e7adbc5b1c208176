// SPDX-License-Identifier: GPL-2.0
/*
 * In the guest, with two CPUs: poison is recorded in a huge page that is neither free
 * nor in use. CPU 1 optimizes or demotes one, and is held by ci/hold-vcpu in the middle
 * of that. On CPU 0 memory failure finds one of its pages meanwhile. The huge page that it
 * is in afterwards is to be poisoned, and when all huge pages are freed, that page is to be
 * the one that the page allocator does not get.
 *
 * Or, on x86-64: with a crash kernel loaded, /bzImage, "mce" says which page of an optimized
 * huge page a machine check is to be about, and waits for it.
 *
 * Usage: poison optimize | demote | mce
 *
 * Exits with 0 when all that has happened, and with 3 when it has not. There is nothing to
 * come back from a machine check to.
 */
#include "guest.h"
#include <fcntl.h>
#include <linux/kexec.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

#define HUGEPAGES	"/sys/kernel/mm/hugepages/hugepages-"
#define KPF_BUDDY		10
#define KPF_COMPOUND_HEAD	15
#define KPF_COMPOUND_TAIL	16
#define KPF_HUGE		17
#define KPF_HWPOISON		19
/* What "--tell" goes by: the other CPU is held */
#define HELD			((volatile char *)0x500000000000)

static void put(const char *path, unsigned long n)
{
	FILE *f = fopen(path, "w");

	if (!f || fprintf(f, "%lu", n) < 0 || fclose(f))
		die(path);
}

static unsigned long number(const char *path)
{
	FILE *f = fopen(path, "r");
	unsigned long n;

	if (!f || fscanf(f, "%lu", &n) != 1)
		die(path);
	fclose(f);
	return n;
}

/* The flags of a page, of a huge one those of its head. */
static uint64_t flags_of(unsigned long pfn)
{
	const int fd = open("/proc/kpageflags", O_RDONLY);
	uint64_t v;

	do {
		if (fd < 0 || pread(fd, &v, sizeof(v), pfn * sizeof(v)) != sizeof(v))
			die("/proc/kpageflags");
	} while (v & 1 << KPF_COMPOUND_TAIL && pfn--);
	close(fd);
	return v;
}

/* Return: the first page with all of these flags, or 0. */
static unsigned long find(uint64_t want)
{
	const int fd = open("/proc/kpageflags", O_RDONLY);
	static uint64_t flags[4096];
	unsigned long pfn = 0;
	ssize_t got;

	if (fd < 0)
		die("/proc/kpageflags");
	while ((got = read(fd, flags, sizeof(flags))) > 0) {
		for (size_t i = 0; i < got / sizeof(*flags); i++, pfn++) {
			if ((flags[i] & want) == want) {
				close(fd);
				return pfn;
			}
		}
	}
	close(fd);
	return 0;
}

static int wait_for_mce(void)
{
	const char *cmdline = "console=ttyS0 panic=-1";
	const int kernel = open("/bzImage", O_RDONLY);
	unsigned long head;

	if (kernel < 0 || syscall(SYS_kexec_file_load, kernel, -1, strlen(cmdline) + 1, cmdline,
				  KEXEC_FILE_ON_CRASH | KEXEC_FILE_NO_INITRAMFS))
		die("kexec_file_load");
	put(HUGEPAGES "2048kB/nr_hugepages", 1);
	head = find(1 << KPF_HUGE | 1 << KPF_COMPOUND_HEAD);
	if (!head)
		die("there is no huge page");
	printf("poison: mce: address 0x%lx\n", (head + 300) * getpagesize());
	sleep(60);
	printf("poison: there was no machine check\n");
	return 3;
}

int main(int argc, char **argv)
{
	const char *how = argc == 2 ? argv[1] : "";
	const int demote = !strcmp(how, "demote");
	unsigned long head, pfn, found;
	struct timespec ts;
	int status;
	pid_t child;
	FILE *f;

	setvbuf(stdout, NULL, _IONBF, 0);
	if (!strcmp(how, "mce"))
		return wait_for_mce();
	if (!demote && strcmp(how, "optimize"))
		die("usage: poison optimize | demote | mce");
	if (mmap((void *)HELD, getpagesize(), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS |
		 MAP_FIXED_NOREPLACE | MAP_POPULATE, -1, 0) != HELD)
		die("mmap");
	/* Not one from boot, which v7.3-rc7 cannot demote. */
	if (demote)
		put(HUGEPAGES "1048576kB/nr_hugepages", 1);
	child = fork();
	if (!child) {
		pin(1);
		if (demote)
			put(HUGEPAGES "1048576kB/demote", 1);
		else
			put(HUGEPAGES "2048kB/nr_hugepages", 1);
		exit(0);
	}
	pin(0);
	while (!*HELD)
		if (waitpid(child, &status, WNOHANG))
			die("nobody held the other CPU");

	head = find(1 << KPF_HUGE | 1 << KPF_COMPOUND_HEAD);
	if (!head)
		die("there is no huge page");
	/* Not in the first one of the smaller ones */
	pfn = head + (demote ? 5 * 512 : 0) + 300;
	f = fopen("/sys/devices/system/memory/hard_offline_page", "w");
	if (!f || fprintf(f, "%lu", pfn * getpagesize()) < 0)
		die("hard_offline_page");
	printf("poison: pfn 0x%lx of 0x%lx: %s\n", pfn, head, fclose(f) ? strerror(errno) : "done");
	/* For ci/hold-vcpu, which waits for that. */
	sched_rr_get_interval(0, &ts);

	if (waitpid(child, &status, 0) != child)
		die("waitpid");
	/* What is poisoned may be refused. */
	printf("poison: %s ended with %d\n", how, WIFEXITED(status) ? WEXITSTATUS(status) : -1);
	if (!(flags_of(pfn) & 1 << KPF_HWPOISON)) {
		printf("poison: the huge page of the page is not poisoned\n");
		return 3;
	}
	put(HUGEPAGES "2048kB/nr_hugepages", 0);
	if (demote)
		put(HUGEPAGES "1048576kB/nr_hugepages", 0);
	printf("poison: %lu huge pages are left\n", number(HUGEPAGES "2048kB/nr_hugepages"));
	found = find(1 << KPF_HWPOISON);
	if (found != pfn || flags_of(pfn) & 1 << KPF_BUDDY) {
		printf("poison: the page that is kept is 0x%lx\n", found);
		return 3;
	}
	if (find(1 << KPF_HUGE | 1 << KPF_COMPOUND_HEAD))
		die("a huge page is left");
	printf("poison: the page is kept\n");
	return 0;
}
