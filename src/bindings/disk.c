// SPDX-License-Identifier: GPL-2.0
/*
 * What helpers.c is for, of block devices of the module's own, and of bios.
 */
#include <linux/bio.h>
#include <linux/blkdev.h>
#include <linux/mempool.h>
#include <linux/module.h>

#include "helpers.h"

unsigned int tmem_bdev_major(struct block_device *bdev)
{
	return MAJOR(bdev->bd_dev);
}

/* Opens a device for whoever holds it alone. */
struct file *tmem_bdev_open(const char *path, void *holder)
{
	return bdev_file_open_by_path(path, BLK_OPEN_READ | BLK_OPEN_WRITE,
				      holder, NULL);
}

bool tmem_bdev_stackable(struct block_device *bdev)
{
	return bdev_logical_block_size(bdev) <= PAGE_SIZE &&
	       !bdev_is_zoned(bdev) && bdev_nr_sectors(bdev) >= PAGE_SECTORS;
}

/*
 * A device for whole pages that are stored where they are on another one. Its
 * bios are cut so that none has more than max_pages, or goes on over a multiple
 * of align_pages. What is on it is found as fast in any order.
 */
struct gendisk *tmem_disk_alloc(struct block_device *lower,
				const struct block_device_operations *ops,
				void *data, const char *name, int major,
				int minor, unsigned int max_pages,
				unsigned int align_pages)
{
	const struct queue_limits *below = bdev_limits(lower);
	struct queue_limits lim = {
		.features = below->features &
			    (BLK_FEAT_WRITE_CACHE | BLK_FEAT_FUA |
			     BLK_FEAT_STABLE_WRITES),
		.logical_block_size = PAGE_SIZE,
		.physical_block_size = max_t(unsigned int, PAGE_SIZE,
					     below->physical_block_size),
		.io_min = PAGE_SIZE,
		.dma_alignment = PAGE_SIZE - 1,
		.max_segments = USHRT_MAX,
		.max_segment_size = UINT_MAX,
		.max_hw_sectors = max_pages * PAGE_SECTORS,
		.chunk_sectors = align_pages * PAGE_SECTORS,
		.max_hw_discard_sectors = below->max_discard_sectors,
		.max_user_discard_sectors = UINT_MAX,
		.max_discard_segments = 1,
		.discard_granularity = max_t(unsigned int, PAGE_SIZE,
					     below->discard_granularity),
		.max_write_zeroes_sectors = below->max_write_zeroes_sectors,
	};
	struct gendisk *disk = blk_alloc_disk(&lim, NUMA_NO_NODE);

	if (IS_ERR(disk))
		return disk;
	disk->major = major;
	disk->first_minor = minor;
	disk->minors = 1;
	disk->flags |= GENHD_FL_NO_PART;
	disk->fops = ops;
	disk->private_data = data;
	strscpy(disk->disk_name, name, DISK_NAME_LEN);
	set_capacity(disk, round_down(bdev_nr_sectors(lower), PAGE_SECTORS));
	return disk;
}

/* Sets *closed, which is looked at by who opens it, unless somebody has it open. */
bool tmem_disk_close(struct gendisk *disk, bool *closed)
{
	bool unused;

	mutex_lock(&disk->open_mutex);
	unused = !disk_openers(disk);
	if (unused)
		WRITE_ONCE(*closed, true);
	mutex_unlock(&disk->open_mutex);
	return unused;
}

void *tmem_bdev_data(struct block_device *bdev)
{
	return bdev->bd_disk->private_data;
}

enum tmem_bio_kind tmem_bio_kind(const struct bio *bio)
{
	switch (bio_op(bio)) {
	case REQ_OP_READ:
		return TMEM_BIO_READ;
	case REQ_OP_WRITE:
		if (!bio->bi_iter.bi_size)
			return TMEM_BIO_OTHER;
		return bio->bi_opf & REQ_SWAP ? TMEM_BIO_SWAP : TMEM_BIO_CHANGE;
	case REQ_OP_DISCARD:
	case REQ_OP_SECURE_ERASE:
	case REQ_OP_WRITE_ZEROES:
		return TMEM_BIO_CHANGE;
	default:
		return TMEM_BIO_OTHER;
	}
}

/* The pages of the device that it is about; false if those are not whole ones. */
bool tmem_bio_range(const struct bio *bio, u64 *first, u64 *count)
{
	*first = bio->bi_iter.bi_sector / PAGE_SECTORS;
	*count = bio->bi_iter.bi_size / PAGE_SIZE;
	return *count && IS_ALIGNED(bio->bi_iter.bi_sector, PAGE_SECTORS) &&
	       IS_ALIGNED(bio->bi_iter.bi_size, PAGE_SIZE);
}

/* Its pages of memory, if those are whole ones, and no more than that. */
unsigned int tmem_bio_pages(struct bio *bio, struct page **pages,
			    unsigned int max)
{
	struct bio_vec vector;
	struct bvec_iter iter;
	unsigned int count = 0;

	bio_for_each_segment(vector, bio, iter) {
		if (count == max || vector.bv_offset ||
		    vector.bv_len != PAGE_SIZE)
			return 0;
		pages[count++] = vector.bv_page;
	}
	return count;
}

/* Takes the first pages out of a bio; what is left of it is submitted anew. */
struct bio *tmem_bio_split(struct bio *bio, unsigned int pages)
{
	return bio_submit_split_bioset(bio, pages * PAGE_SECTORS,
				       &bio->bi_bdev->bd_disk->bio_split);
}

void tmem_bio_forward(struct bio *bio, struct block_device *to)
{
	bio_set_dev(bio, to);
	submit_bio_noacct(bio);
}

void tmem_bio_end(struct bio *bio, int err)
{
	bio_endio_status(bio, errno_to_blk_status(err));
}

mempool_t *tmem_mempool_new(unsigned int count, size_t size)
{
	return mempool_create_kmalloc_pool(count, size);
}

/* If it waits, then for what comes back, rather than for reclaim. */
void *tmem_mempool_alloc(mempool_t *pool, bool wait)
{
	return mempool_alloc(pool, wait ? GFP_NOIO : GFP_NOWAIT | __GFP_NOWARN);
}
