/* SPDX-License-Identifier: GPL-2.0 */
/* For programs in the guest that have a die(). */
#include <fcntl.h>
#include <stdint.h>
#include <unistd.h>

#define KPF_SLAB		7

/* A page of the same zone that nobody can offline: one of slab, above it or below. */
static unsigned long slab_near(unsigned long pfn)
{
	const int fd = open("/proc/kpageflags", O_RDONLY);
	const int steps[] = { 1, -1 };
	uint64_t flags;

	for (int i = 0; i < 2; i++) {
		for (unsigned long at = pfn; pread(fd, &flags, sizeof(flags), at * sizeof(flags)) ==
					     sizeof(flags); at += steps[i]) {
			if (flags & 1 << KPF_SLAB) {
				close(fd);
				return at;
			}
		}
	}
	die("no page of slab");
	return 0;
}
