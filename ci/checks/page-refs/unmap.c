// SPDX-License-Identifier: GPL-2.0
/*
 * In the guest, with two CPUs: on CPU 1 a thread faults in a huge page of a
 * private mapping without a reservation, which is a surplus page, and is held by
 * ci/hold-vcpu when the page is mapped. On CPU 0, which keeps the time, the page
 * is unmapped again, and freed with that.
 *
 * Exits with 0 when all that has happened, and with 3 when it has not.
 */
#include "guest.h"
#include <pthread.h>
#include <sys/mman.h>

#define POLLS	100000	/* a quarter of a second or so under TCG */

static volatile char *mem;

static void write_to(const char *path, const char *what)
{
	FILE *f = fopen(path, "w");

	if (!f || fputs(what, f) < 0 || fclose(f))
		die(path);
}

static void *fault(void *done)
{
	pin(1);
	*mem = 1;
	*(volatile int *)done = 1;
	return NULL;
}

int main(void)
{
	const size_t huge = 2UL << 20;
	volatile int done = 0;
	pthread_t thread;
	struct timespec ts;
	int poll;

	pin(0);
	/* More than one: the thread may have to fault again. */
	write_to("/proc/sys/vm/nr_overcommit_hugepages", "8");
	mem = mmap(NULL, huge, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | MAP_NORESERVE, -1, 0);
	if (mem == MAP_FAILED)
		die("mmap");
	if (pthread_create(&thread, NULL, fault, (void *)&done))
		die("pthread_create");
	/* Long enough for the thread to get there. */
	for (poll = 0; poll < POLLS; poll++)
		if (getppid() && done)
			die("nobody held the fault");
	if (madvise((void *)mem, huge, MADV_DONTNEED))
		die("madvise");
	/* A surplus page is freed by a work item, which this waits for. */
	write_to("/proc/sys/vm/nr_hugepages", "0");
	/* For ci/hold-vcpu, which waits for that. */
	sched_rr_get_interval(0, &ts);
	pthread_join(thread, NULL);
	printf("race: faulted and unmapped\n");
	return 0;
}
