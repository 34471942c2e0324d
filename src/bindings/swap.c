// SPDX-License-Identifier: GPL-2.0
/*
 * What helpers.c is for, of swapping.
 */
#include <linux/bvec.h>
#include <linux/percpu-refcount.h>
#include <linux/slab.h>
#include <linux/static_call.h>
#include <linux/swapops.h>
#include <linux/uio.h>
#include <linux/vmstat.h>
#include <linux/zswap.h>

#include "helpers.h"

unsigned int tmem_swp_type(swp_entry_t entry)
{
	return swp_type(entry);
}

unsigned long tmem_swp_offset(swp_entry_t entry)
{
	return swp_offset(entry);
}

/* The request of which a part goes elsewhere; the kernel frees it as its own. */
struct swap_iocb *tmem_alloc_swap_iocb(void)
{
	return kzalloc(sizeof(struct swap_iocb), GFP_NOIO | __GFP_NOFAIL);
}

struct folio *tmem_bvec_folio(const struct bio_vec *bv)
{
	return page_folio(bv->bv_page);
}

/*
 * Ends a swap request as a filesystem would: swap_fs_prepare_rw() installs the
 * completion that ends writeback, or unlocks, and frees the request.
 */
void tmem_swap_complete(struct swap_io_ctx *ctx, int rw, long result)
{
	struct swap_iocb *sio = ctx->sio;
	struct iov_iter iter;

	swap_fs_prepare_rw(ctx, rw, &iter);
	sio->iocb.ki_complete(&sio->iocb, result);
}

/* As get_swap_device() and put_swap_device(), for the area as a whole. */
bool tmem_swap_area_get(struct swap_info_struct *sis)
{
	if (!percpu_ref_tryget_live(&sis->users))
		return false;
	/* What the area consists of was there before it was live. */
	smp_rmb();
	return true;
}

void tmem_swap_area_put(struct swap_info_struct *sis)
{
	percpu_ref_put(&sis->users);
}

/* As the kernel counts pages that a request has read. */
void tmem_count_swap_in(unsigned long pages)
{
	count_vm_events(PSWPIN, pages);
}

/* Calls zswap_load(): see tmem_call_remove_mapping(). */
static_assert(__same_type(zswap_load, tmem_call_zswap_load));
DEFINE_STATIC_CALL_NULL(tmem_zswap_load, zswap_load);

void tmem_set_zswap_load(void *addr)
{
	static_call_update(tmem_zswap_load, addr);
}

int tmem_call_zswap_load(struct folio *folio)
{
	int result = static_call(tmem_zswap_load)(folio);

	/* Not the last thing: a jump would hide who calls. */
	barrier();
	return result;
}
