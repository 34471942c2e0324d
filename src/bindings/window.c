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
#include <asm/processor-flags.h>
#include <asm/special_insns.h>

#include "helpers.h"

/* Claims the range first, so that it is nobody else's: neither memory nor a driver's. */
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

/* Any change of the bit makes a processor forget all translations, of all kinds. */
static void forget_translations(void *unused)
{
	unsigned long cr4 = native_read_cr4();

	asm volatile("mov %0, %%cr4" : : "r" (cr4 ^ X86_CR4_PGE) : "memory");
	asm volatile("mov %0, %%cr4" : : "r" (cr4) : "memory");
}

/*
 * Where an MTRR says uncached, as firmware has it of all PCI memory below 4 GiB
 * and some of it above, the kernel makes a mapping uncached that is asked for
 * as write-back. It is right to do so for registers. This is memory, which the
 * host has mapped write-back: on a processor that heeds the guest's page tables
 * (AMD's), any other type would be slow and, beside the host's, an alias; on
 * one that does not (Intel's), it makes no difference. A virtual machine's MTRRs
 * are not the processor's.
 *
 * The entries are this mapping's alone, and nobody else changes them while it is
 * there. The kernel's functions to change them take addresses of the linear map
 * only, and those to flush the TLB are not exported.
 */
bool tmem_window_make_write_back(void *addr, size_t len)
{
	unsigned long at = (unsigned long)addr, end = at + len;
	bool changed = false;

	while (at < end) {
		unsigned int level;
		pte_t *leaf = lookup_address(at, &level);
		pteval_t mask = level == PG_LEVEL_4K ? _PAGE_CACHE_MASK :
						       _PAGE_LARGE_CACHE_MASK;
		pteval_t entry;

		if (!leaf)
			return false;
		entry = READ_ONCE(leaf->pte);
		/* None of the bits is write-back, on any processor. */
		while (entry & mask) {
			if (try_cmpxchg(&leaf->pte, &entry, entry & ~mask)) {
				changed = true;
				break;
			}
		}
		at = (at & page_level_mask(level)) + page_level_size(level);
	}
	if (changed)
		on_each_cpu(forget_translations, NULL, true);
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
