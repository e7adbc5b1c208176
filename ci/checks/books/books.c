// SPDX-License-Identifier: GPL-2.0
/*
 * In the guest: after an operation that fails half way, or is sorted out, the books of
 * HugeTLB and of memory failure are as before. By name, since one of them brings the
 * base down.
 *
 * Usage: books TEST...
 *
 * Prints "ok NAME" or "not ok NAME: WHAT", and exits with 1 if there is one of these.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/udmabuf.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <unistd.h>

#define HUGE		(2UL << 20)
#define POOL		"/sys/kernel/mm/hugepages/hugepages-2048kB/"
#define INJECT		"/sys/kernel/debug/hwpoison/"
#define TAIL		200	/* its struct page is one that HVO maps read-only */

#define KPF_BUDDY		10
#define KPF_COMPOUND_HEAD	15
#define KPF_HWPOISON		19

static const char *test;
static int failed;

static void die(const char *what)
{
	printf("books: %s: %s: %s\n", test, what, strerror(errno));
	exit(3);
}

#include "../../guest/slab.h"

static void __attribute__((format(printf, 1, 2))) wrong(const char *format, ...)
{
	va_list args;

	printf("not ok %s: ", test);
	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	putchar('\n');
	failed++;
}

static void expect(const char *what, long is, long want)
{
	if (is != want)
		wrong("%s is %ld, not %ld", what, is, want);
}

/* The number in a file, or the one that follows a word. */
static long number(const char *path, const char *word)
{
	const size_t len = word ? strlen(word) : 0;
	FILE *f = fopen(path, "r");
	long n = -1;
	char line[256];

	if (!f)
		die(path);
	while (fgets(line, sizeof(line), f)) {
		if (!word || (!strncmp(line, word, len) && strchr(" :\t", line[len]))) {
			n = strtol(line + len + strspn(line + len, ": \t"), NULL, 0);
			break;
		}
	}
	fclose(f);
	return n;
}

/* Return: 0, or the error. */
static int put(const char *path, const char *format, ...)
{
	char text[64];
	va_list args;
	int fd, ret = 0;

	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	fd = open(path, O_WRONLY);
	if (fd < 0)
		die(path);
	if (write(fd, text, strlen(text)) < 0)
		ret = errno;
	close(fd);
	return ret;
}

static void must_put(const char *path, unsigned long n)
{
	errno = put(path, "%lu", n);
	if (errno)
		die(path);
}

static uint64_t read_u64(const char *path, uint64_t at)
{
	int fd = open(path, O_RDONLY);
	uint64_t v = 0;

	if (fd < 0 || pread(fd, &v, sizeof(v), at * sizeof(v)) != sizeof(v))
		die(path);
	close(fd);
	return v;
}

static unsigned long pfn_of(void *addr)
{
	return read_u64("/proc/self/pagemap", (uintptr_t)addr / getpagesize()) & ((1ULL << 55) - 1);
}

static bool has_flag(unsigned long pfn, int flag)
{
	return read_u64("/proc/kpageflags", pfn) >> flag & 1;
}

static char *map_huge(unsigned long nr, int fd, int flags)
{
	return mmap(NULL, nr * HUGE, PROT_READ | PROT_WRITE,
		    flags | (fd < 0 ? MAP_ANONYMOUS | MAP_HUGETLB : 0), fd, 0);
}

/* How a child that does @work ended: its signal, 0, or -1 after 10 s. */
static int signal_of(void (*work)(const void *), const void *arg)
{
	pid_t child = fork();
	int status, i;

	if (!child) {
		work(arg);
		_exit(0);
	}
	for (i = 0; i < 1000; i++) {
		if (waitpid(child, &status, WNOHANG) == child)
			return WIFSIGNALED(status) ? WTERMSIG(status) : 0;
		usleep(10000);
	}
	kill(child, SIGKILL);
	waitpid(child, &status, 0);
	return -1;
}

struct pool {
	long nr, free, resv, surplus, memmap;
};

static struct pool pool(void)
{
	/* Surplus pages are freed by a worker, which a write waits for. */
	must_put(POOL "nr_overcommit_hugepages", number(POOL "nr_overcommit_hugepages", NULL));
	must_put(POOL "nr_hugepages", number(POOL "nr_hugepages", NULL) -
				      number(POOL "surplus_hugepages", NULL));
	return (struct pool) {
		.nr = number(POOL "nr_hugepages", NULL),
		.free = number(POOL "free_hugepages", NULL),
		.resv = number(POOL "resv_hugepages", NULL),
		.surplus = number(POOL "surplus_hugepages", NULL),
		.memmap = number("/proc/vmstat", "nr_memmap_pages") +
			  number("/proc/vmstat", "nr_memmap_boot_pages"),
	};
}

static void expect_pool(const struct pool *want)
{
	const struct pool is = pool();

	expect("nr_hugepages", is.nr, want->nr);
	expect("free_hugepages", is.free, want->free);
	expect("resv_hugepages", is.resv, want->resv);
	expect("surplus_hugepages", is.surplus, want->surplus);
	expect("nr_memmap_pages and nr_memmap_boot_pages", is.memmap, want->memmap);
}

/* Called without huge pages in use; some that are, since less than 0 is shown as 0. */
static void expect_no_nr_hugetlb(void)
{
	const long nr = 32;
	char *mem;

	must_put(POOL "nr_hugepages", nr);
	mem = map_huge(nr, -1, MAP_PRIVATE);
	if (mem == MAP_FAILED)
		die("mmap");
	for (long i = 0; i < nr; i++)
		mem[i * HUGE] = 1;
	put("/proc/sys/vm/stat_refresh", "1");
	expect("nr_hugetlb", number("/proc/vmstat", "nr_hugetlb") - nr * (long)(HUGE / getpagesize()), 0);
	munmap(mem, nr * HUGE);
	must_put(POOL "nr_hugepages", 0);
}

/* --- A page that the memory cgroup does not get ------------------------------- */

static void touch_in_cgroup(const void *flags)
{
	char *mem;

	if (put("/tmp/cg/limited/cgroup.procs", "0"))
		_exit(9);
	mem = map_huge(1, -1, MAP_PRIVATE | *(const int *)flags);
	if (mem != MAP_FAILED)
		mem[0] = 1;
}

static void touch_beyond_limit(const char *what, int flags)
{
	const struct pool before = pool();

	if (signal_of(touch_in_cgroup, &flags) != SIGBUS)
		wrong("%s: no SIGBUS", what);
	expect_pool(&before);
}

static void memcg(void)
{
	mkdir("/tmp/cg", 0755);
	if (mount("none", "/tmp/cg", "cgroup2", 0, "memory_hugetlb_accounting"))
		die("cgroup2");
	errno = put("/tmp/cg/cgroup.subtree_control", "+memory");
	if (errno || mkdir("/tmp/cg/limited", 0755))
		die("memory cgroup");
	must_put("/tmp/cg/limited/memory.max", 1500000);

	must_put(POOL "nr_hugepages", 4);
	touch_beyond_limit("reserved", 0);
	touch_beyond_limit("not reserved", MAP_NORESERVE);
	must_put(POOL "nr_hugepages", 0);
	must_put(POOL "nr_overcommit_hugepages", 4);
	touch_beyond_limit("surplus", MAP_NORESERVE);
	must_put(POOL "nr_overcommit_hugepages", 0);
	expect_no_nr_hugetlb();
}

/* --- A subpool (size=, min_size=) ---------------------------------------------- */

static void mount_huge(const char *options)
{
	mkdir("/tmp/huge", 0755);
	if (mount("none", "/tmp/huge", "hugetlbfs", 0, options))
		die(options);
}

static long free_of_mount(void)
{
	struct statfs s;

	if (statfs("/tmp/huge", &s))
		die("statfs");
	return s.f_bfree;
}

static int huge_file(const char *name, unsigned long nr)
{
	int fd = open(name, O_CREAT | O_RDWR, 0600);

	if (fd < 0 || ftruncate(fd, nr * HUGE))
		die(name);
	return fd;
}

static void touch_shared(const void *fd)
{
	char *mem = map_huge(1, *(const int *)fd, MAP_SHARED | MAP_NORESERVE);

	if (mem != MAP_FAILED)
		mem[0] = 1;
}

static void subpool(void)
{
	int fd, i, nr = 0;
	char *mem;

	must_put(POOL "nr_hugepages", 0);
	mount_huge("pagesize=2M,size=64M");
	fd = huge_file("/tmp/huge/file", 32);
	for (i = 0; i < 40; i++)
		nr += signal_of(touch_shared, &fd) == SIGBUS;
	expect("faults without a page", nr, 40);
	expect("free pages of a mount with size=", free_of_mount(), 32);

	must_put(POOL "nr_hugepages", 8);
	mem = map_huge(8, fd, MAP_SHARED);
	if (mem == MAP_FAILED)
		wrong("8 pages of a mount with size=: %s", strerror(errno));
	else
		munmap(mem, 8 * HUGE);
	close(fd);
	unlink("/tmp/huge/file");
	expect("free pages of a mount in the end", free_of_mount(), 32);
	if (umount("/tmp/huge"))
		die("umount");
	expect("resv_hugepages", number(POOL "resv_hugepages", NULL), 0);
	must_put(POOL "nr_hugepages", 0);
	expect_no_nr_hugetlb();
}

/* The pages of a mmap() that fails: some are the mount's own, some would not be. */
static void min_size(void)
{
	int fd;

	must_put(POOL "nr_hugepages", 4);
	mount_huge("pagesize=2M,min_size=8M,size=16M");
	expect("resv_hugepages with a mount", number(POOL "resv_hugepages", NULL), 4);
	fd = huge_file("/tmp/huge/file", 8);
	if (map_huge(8, fd, MAP_SHARED) != MAP_FAILED)
		wrong("8 pages of a pool of 4 are mapped");
	expect("resv_hugepages after mmap()", number(POOL "resv_hugepages", NULL), 4);
	expect("free pages of a mount after mmap()", free_of_mount(), 8);
	close(fd);
	unlink("/tmp/huge/file");
	if (umount("/tmp/huge"))
		die("umount");
	expect("resv_hugepages", number(POOL "resv_hugepages", NULL), 0);
	must_put(POOL "nr_hugepages", 0);
	expect_no_nr_hugetlb();
}

/* --- UFFDIO_COPY ----------------------------------------------------------------- */

static int copy_to(char *dst, const char *src)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register reg = {
		.range = { (uintptr_t)dst, HUGE },
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};
	struct uffdio_copy copy = {
		.dst = (uintptr_t)dst,
		.src = (uintptr_t)src,
		.len = HUGE,
	};
	int fd = syscall(SYS_userfaultfd, O_CLOEXEC), ret;

	if (fd < 0 || ioctl(fd, UFFDIO_API, &api) || ioctl(fd, UFFDIO_REGISTER, &reg))
		die("userfaultfd");
	ret = ioctl(fd, UFFDIO_COPY, &copy) ? errno : 0;
	close(fd);
	return ret;
}

static char *absent(void)
{
	char *mem = mmap(NULL, 2 * HUGE, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (mem == MAP_FAILED)
		die("mmap");
	return mem;
}

static void uffd_nomem(void)
{
	char *src = absent(), *dst;

	must_put(POOL "nr_hugepages", 0);
	memset(src, 1, HUGE);
	dst = map_huge(1, -1, MAP_PRIVATE | MAP_NORESERVE);
	if (dst == MAP_FAILED)
		die("mmap");
	expect("the error of UFFDIO_COPY without a page", copy_to(dst, src), ENOMEM);
	munmap(dst, HUGE);
	munmap(src, 2 * HUGE);
}

static void uffd_restore(void)
{
	char *src = absent(), *dst;
	int fd;

	must_put(POOL "nr_hugepages", 4);
	mount_huge("pagesize=2M,min_size=4M");
	expect("resv_hugepages of min_size=", number(POOL "resv_hugepages", NULL), 2);
	fd = huge_file("/tmp/huge/file", 1);
	dst = map_huge(1, fd, MAP_PRIVATE | MAP_NORESERVE);
	if (dst == MAP_FAILED)
		die("mmap");
	expect("the error of UFFDIO_COPY", copy_to(dst, src), 0);
	munmap(dst, HUGE);
	munmap(src, 2 * HUGE);
	close(fd);
	unlink("/tmp/huge/file");
	expect("resv_hugepages after use", number(POOL "resv_hugepages", NULL), 2);
	if (umount("/tmp/huge"))
		die("umount");
	expect("resv_hugepages without the mount", number(POOL "resv_hugepages", NULL), 0);
	must_put(POOL "nr_hugepages", 0);
}

/* --- nr_hugetlb -------------------------------------------------------------------- */

static void nr_hugetlb(void)
{
	int i;

	must_put(POOL "nr_overcommit_hugepages", 8);
	for (i = 0; i < 2; i++)
		if (map_huge(64, -1, MAP_PRIVATE) != MAP_FAILED)
			die("more surplus pages than are allowed");
	must_put(POOL "nr_overcommit_hugepages", 0);
	expect("surplus_hugepages", pool().surplus, 0);
	expect_no_nr_hugetlb();
}

/* --- Two that pin the same hole of a memfd ------------------------------------------ */

static pthread_barrier_t together;
static int udmabuf, memfd;

static void *pin_hole(void *unused)
{
	struct udmabuf_create create = {
		.memfd = memfd,
		.flags = UDMABUF_FLAGS_CLOEXEC,
		.size = HUGE,
	};
	int fd;

	pthread_barrier_wait(&together);
	fd = ioctl(udmabuf, UDMABUF_CREATE, &create);
	pthread_barrier_wait(&together);
	if (fd >= 0)
		close(fd);
	return unused;
}

static void memfd_hole(void)
{
	pthread_t other;
	char *reserved;
	int i;

	must_put(POOL "nr_hugepages", 12);
	reserved = map_huge(8, -1, MAP_PRIVATE);
	udmabuf = open("/dev/udmabuf", O_RDWR);
	if (reserved == MAP_FAILED || udmabuf < 0)
		die("udmabuf");
	pthread_barrier_init(&together, NULL, 2);
	for (i = 0; i < 50; i++) {
		memfd = memfd_create("hole", MFD_HUGETLB | MFD_ALLOW_SEALING);
		if (memfd < 0 || ftruncate(memfd, HUGE) || fcntl(memfd, F_ADD_SEALS, F_SEAL_SHRINK))
			die("memfd");
		if (pthread_create(&other, NULL, pin_hole, NULL))
			die("pthread_create");
		pin_hole(NULL);
		pthread_join(other, NULL);
		close(memfd);
	}
	close(udmabuf);
	expect("resv_hugepages for somebody else", number(POOL "resv_hugepages", NULL), 8);
	munmap(reserved, 8 * HUGE);
	expect("resv_hugepages", number(POOL "resv_hugepages", NULL), 0);
	expect("free_hugepages", number(POOL "free_hugepages", NULL), 12);
	must_put(POOL "nr_hugepages", 0);
	expect_no_nr_hugetlb();
}

/* --- Poison -------------------------------------------------------------------------- */

static char *one_page(unsigned long *pfn)
{
	char *mem = map_huge(1, -1, MAP_PRIVATE);

	if (mem == MAP_FAILED)
		die("mmap");
	mem[0] = 1;
	*pfn = pfn_of(mem);
	return mem;
}

static void expect_no_poison(const char *what, unsigned long pfn)
{
	if (has_flag(pfn, KPF_HWPOISON))
		wrong("%s: the huge page is poisoned", what);
	if (has_flag(pfn + TAIL, KPF_HWPOISON))
		wrong("%s: its page is poisoned", what);
	expect("HardwareCorrupted", number("/proc/meminfo", "HardwareCorrupted"), 0);
}

/* The filter lets head pages pass, and so a head page for which a tail is meant. */
static void filter(void)
{
	unsigned long pfn;
	char *mem;

	must_put(POOL "nr_hugepages", 1);
	mem = one_page(&pfn);
	must_put(INJECT "corrupt-filter-flags-mask", 1UL << KPF_COMPOUND_HEAD);
	must_put(INJECT "corrupt-filter-flags-value", 1UL << KPF_COMPOUND_HEAD);
	must_put(INJECT "corrupt-filter-enable", 1);
	put(INJECT "corrupt-pfn", "%lu", pfn + TAIL);
	expect_no_poison("in use, sorted out", pfn);
	munmap(mem, HUGE);
	put(INJECT "corrupt-pfn", "%lu", pfn + TAIL);
	expect_no_poison("free, sorted out", pfn);
	must_put(INJECT "corrupt-filter-enable", 0);
	must_put(POOL "nr_hugepages", 0);
	expect_no_poison("no huge page any more", pfn);
}

/*
 * What was freed may be in a list of some CPU, where it is not seen to be free. Memory
 * failure empties the lists of a zone before it looks at a page: let it look at one
 * that it can do nothing about.
 */
static void drain_lists(unsigned long pfn)
{
	put("/sys/devices/system/memory/soft_offline_page", "%lu", slab_near(pfn) * getpagesize());
}

static void expect_kept_out(const char *what, unsigned long pfn)
{
	drain_lists(pfn);
	if (!has_flag(pfn, KPF_HWPOISON))
		wrong("%s: the page is not poisoned", what);
	if (has_flag(pfn, KPF_BUDDY))
		wrong("%s: the poisoned page is free in the buddy allocator", what);
	expect("HardwareCorrupted", number("/proc/meminfo", "HardwareCorrupted"), 4);
	errno = put(INJECT "unpoison-pfn", "%lu", pfn);
	if (errno)
		wrong("%s: it cannot be unpoisoned: %s", what, strerror(errno));
	if (has_flag(pfn, KPF_HWPOISON))
		wrong("%s: it is still poisoned", what);
	expect("HardwareCorrupted in the end", number("/proc/meminfo", "HardwareCorrupted"), 0);
}

/* MADV_HWPOISON is an access to the page as well. */
static void hit(int sig)
{
	(void)sig;
}

static void poison_one(int index)
{
	unsigned long pfn;
	struct iovec iov;
	int pipefd[2];
	char *mem;

	/* Free: it is dissolved. */
	must_put(POOL "nr_hugepages", 1);
	munmap(one_page(&pfn), HUGE);
	errno = put("/sys/devices/system/memory/hard_offline_page", "%lu",
		    (pfn + index) * getpagesize());
	if (errno)
		wrong("free: %s", strerror(errno));
	expect("nr_hugepages", number(POOL "nr_hugepages", NULL), 0);
	expect_kept_out("free", pfn + index);

	/* In use, and nobody else has it: it is unmapped and dissolved. */
	must_put(POOL "nr_hugepages", 1);
	mem = one_page(&pfn);
	if (madvise(mem + index * getpagesize(), getpagesize(), MADV_HWPOISON))
		wrong("in use: %s", strerror(errno));
	munmap(mem, HUGE);
	expect_kept_out("in use", pfn + index);
	must_put(POOL "nr_hugepages", 0);

	/* A pipe has it as well: it goes back to the pool, and is freed from there. */
	must_put(POOL "nr_hugepages", 1);
	mem = one_page(&pfn);
	iov = (struct iovec) { mem, 16 };
	if (pipe(pipefd) || vmsplice(pipefd[1], &iov, 1, 0) != 16)
		die("vmsplice");
	madvise(mem + index * getpagesize(), getpagesize(), MADV_HWPOISON);
	munmap(mem, HUGE);
	close(pipefd[0]);
	close(pipefd[1]);
	must_put(POOL "nr_hugepages", 0);
	expect("nr_hugepages", number(POOL "nr_hugepages", NULL), 0);
	expect_kept_out("pinned", pfn + index);
}

static void poison(void)
{
	signal(SIGBUS, hit);
	poison_one(TAIL);
	/* The one that has a reference of its own while it is a huge page */
	poison_one(0);
}

static const struct {
	const char *name;
	void (*run)(void);
} tests[] = {
	{ "memcg", memcg },
	{ "subpool", subpool },
	{ "min_size", min_size },
	{ "nr_hugetlb", nr_hugetlb },
	{ "uffd_nomem", uffd_nomem },
	{ "uffd_restore", uffd_restore },
	{ "memfd_hole", memfd_hole },
	{ "filter", filter },
	{ "poison", poison },
};

int main(int argc, char **argv)
{
	int all = 0, before;

	setvbuf(stdout, NULL, _IONBF, 0);
	for (int i = 1; i < argc; i++) {
		unsigned int t;

		for (t = 0; t < sizeof(tests) / sizeof(tests[0]); t++)
			if (!strcmp(argv[i], tests[t].name))
				break;
		test = argv[i];
		if (t == sizeof(tests) / sizeof(tests[0])) {
			errno = EINVAL;
			die("there is no such test");
		}
		before = failed;
		tests[t].run();
		if (failed == before)
			printf("ok %s\n", test);
		all++;
	}
	return !all || failed;
}
