// SPDX-License-Identifier: GPL-2.0
/*
 * As helpers.c, of superblocks: whether what they have may be kept elsewhere, and
 * by whom.
 */
#include <linux/blkdev.h>
#include <linux/crc32.h>
#include <linux/crc32c.h>
#include <linux/fs_context.h>
#include <linux/slab.h>
#include <linux/uuid.h>

#include "helpers.h"

/* Returns whether that is news. */
bool tmem_superblock_distrust(struct super_block *sb)
{
	return !test_and_set_bit(TMEM_SB_DISTRUSTED, &sb->s_iflags);
}

/*
 * Whether nobody here can write to it: neither to the filesystem nor to its
 * device, and it can be told from others.
 */
bool tmem_superblock_shareable(const struct super_block *sb)
{
	return sb_rdonly(sb) && sb->s_bdev && bdev_read_only(sb->s_bdev) &&
	       sb->s_uuid_len == UUID_SIZE && !uuid_is_null(&sb->s_uuid) &&
	       !test_bit(TMEM_SB_DISTRUSTED, &sb->s_iflags);
}

bool tmem_superblock_hold(struct super_block *sb)
{
	return atomic_inc_not_zero(&sb->s_active);
}

/*
 * Two sums of the beginning of the block device, where ext4 has its superblock,
 * and xfs the one of its superblock and the headers of its first group: both
 * write there whenever they are mounted to be written to. It is read past the
 * page cache of the device, which xfs writes past, too.
 */
int tmem_superblock_stamp(struct super_block *sb, u64 *stamp)
{
	const size_t len = SZ_4K;
	void *start = kmalloc(len, GFP_NOIO);
	int err;

	if (!start)
		return -ENOMEM;
	err = bdev_rw_virt(sb->s_bdev, 0, start, len, REQ_OP_READ);
	if (!err)
		*stamp = (u64)crc32c(~0U, start, len) << 32 |
			 crc32_le(~0U, start, len);
	kfree(start);
	return err;
}

/* The superblock that a struct fs_context is about. */
struct super_block *tmem_reconfigured(const void *context)
{
	const struct fs_context *fc = context;

	return fc->root ? fc->root->d_sb : NULL;
}
