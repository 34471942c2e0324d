// SPDX-License-Identifier: GPL-2.0
/*
 * Memory outside of the guest's own: mapped, and copied to and from.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/highmem.h>
#include <linux/io.h>
#include <linux/ioport.h>
#include <linux/smp.h>
#include <asm/barrier.h>
#include <asm/pgtable.h>

#include "helpers.h"

/* Claims the range, so that nobody else uses it, and that it is no one's memory. */
void *tmem_window_map(u64 start, size_t len, int *err)
{
	void *addr;

	if (!request_mem_region(start, len, KBUILD_MODNAME)) {
		*err = -EBUSY;
		return NULL;
	}
	addr = memremap(start, len, MEMREMAP_WB);
	if (!addr) {
		*err = -ENOMEM;
		release_mem_region(start, len);
	}
	return addr;
}

void tmem_window_unmap(void *addr, u64 start, size_t len)
{
	memunmap(addr);
	release_mem_region(start, len);
}

/* Reads without claiming, which would take the memory from a process that mapped it. */
int tmem_window_peek(u64 start, void *to, size_t len)
{
	void *addr = memremap(start, len, MEMREMAP_WB);

	if (!addr)
		return -ENOMEM;
	memcpy(to, addr, len);
	memunmap(addr);
	return 0;
}

bool tmem_window_make_write_back(void *addr, size_t len)
{
	unsigned long at = (unsigned long)addr, end = at + len;

	while (at < end) {
		unsigned int level;
		pte_t *leaf = lookup_address(at, &level);
		pteval_t mask = level == PG_LEVEL_4K ? _PAGE_CACHE_MASK :
						       _PAGE_LARGE_CACHE_MASK;

		if (!leaf || pte_val(*leaf) & mask)
			return false;
		at = (at & page_level_mask(level)) + page_level_size(level);
	}
	return true;
}

/* As copy_highpage(), where one of the two has no struct page. */
void tmem_copy_from_page(void *to, struct page *from)
{
	void *addr = kmap_local_page(from);

	copy_page(to, addr);
	kunmap_local(addr);
}

void tmem_copy_to_page(struct page *to, const void *from)
{
	void *addr = kmap_local_page(to);

	copy_page(addr, (void *)from);
	kunmap_local(addr);
}

void tmem_copy(void *to, const void *from, size_t len)
{
	memcpy(to, from, len);
}
/*
 * What was read before has been read before, on any architecture, and with one
 * processor too: it is the host's that write.
 */
u32 tmem_load_le32(const void *addr)
{
	const __le32 *value = addr;

	virt_rmb();
	return le32_to_cpu((__force __le32)virt_load_acquire((const u32 *)value));
}
