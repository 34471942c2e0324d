/* SPDX-License-Identifier: GPL-2.0 */
#ifndef _TMEM_HELPERS_H
#define _TMEM_HELPERS_H

#include <linux/blk_types.h>
#include <linux/blkdev.h>
#include <linux/device.h>
#include <linux/fs.h>
#include <linux/ftrace.h>
#include <linux/kthread.h>
#include <linux/mempool.h>
#include <linux/pagemap.h>
#include <linux/shrinker.h>
#include <linux/swap.h>
#include <linux/swap_ops.h>
#include <linux/virtio.h>
#include <linux/virtio_config.h>
#include <linux/workqueue.h>

/* virtio */
int tmem_virtio_find_vqs(struct virtio_device *vdev, unsigned int nvqs,
			 struct virtqueue *vqs[],
			 struct virtqueue_info info[]);
void tmem_virtio_del_vqs(struct virtio_device *vdev);
void tmem_virtio_device_ready(struct virtio_device *vdev);
bool tmem_virtio_has_feature(const struct virtio_device *vdev,
			     unsigned int fbit);
u8 tmem_virtio_get_status(struct virtio_device *vdev);
int tmem_virtio_finalize_features(struct virtio_device *vdev);
bool tmem_virtio_is_broken(struct virtio_device *vdev);
const u16 *tmem_virtqueue_used_index(const struct virtqueue *vq);
void tmem_virtio_cread_bytes(struct virtio_device *vdev, unsigned int offset,
			     void *buf, size_t len);
bool tmem_virtio_get_shm_region(struct virtio_device *vdev,
				struct virtio_shm_region *region, u8 id);
int tmem_virtqueue_add(struct virtqueue *vq, struct scatterlist *table,
		       unsigned int readable, unsigned int writable,
		       void *data, gfp_t gfp);
bool tmem_sg_set_buf(struct scatterlist *sg, const void *buf, unsigned int len);
void tmem_sg_set_page(struct scatterlist *sg, struct page *page,
		      unsigned int len, unsigned int offset);

/* pages */
bool tmem_memory_encrypted(void);
void tmem_copy_page(struct page *to, struct page *from);
bool tmem_pages_equal(struct page *a, struct page *b, size_t len);
u32 tmem_crc_page(struct page *page);

/* windows */
void *tmem_window_map(u64 start, size_t len, int *err);
void tmem_window_unmap(void *addr, u64 start, size_t len);
int tmem_window_peek(u64 start, void *to, size_t len);
bool tmem_window_make_write_back(void *addr, size_t len);
void tmem_copy_from_page(void *to, struct page *from);
void tmem_copy_to_page(struct page *to, const void *from);
void tmem_copy(void *to, const void *from, size_t len);
u32 tmem_load_le32(const void *addr);

struct shrinker *tmem_shrinker_register(const char *name,
	unsigned long (*count)(struct shrinker *, struct shrink_control *),
	unsigned long (*scan)(struct shrinker *, struct shrink_control *),
	void *data);

/* threads and work */
struct workqueue_struct *tmem_alloc_workqueue(const char *name, bool reclaim);
struct task_struct *tmem_kthread_run(int (*main)(void *), void *data,
				     const char *name);
bool tmem_kthread_wait(const bool *rung, unsigned long ticks);
unsigned long tmem_jiffies(void);

/* hooks */
bool tmem_within_text(unsigned long addr, const struct module *mod);
void tmem_regs_set_ip(struct ftrace_regs *fregs, unsigned long ip);
unsigned long tmem_regs_arg(struct ftrace_regs *fregs, unsigned int n);
void tmem_tracepoint_synchronize(void);

/* folios */
unsigned long tmem_folio_nr_pages(const struct folio *folio);
unsigned int tmem_folio_order(const struct folio *folio);
struct page *tmem_folio_page(struct folio *folio, unsigned long n);
int tmem_folio_ref_count(const struct folio *folio);
void tmem_folio_evict(struct folio *folio);
bool tmem_folio_putable(const struct folio *folio);
bool tmem_folio_workingset(const struct folio *folio);
bool tmem_folio_fillable(const struct folio *folio);
void tmem_folio_get(struct folio *folio);
void tmem_folio_put(struct folio *folio);
void tmem_folio_lock(struct folio *folio);
bool tmem_folio_pristine(const struct folio *folio);
struct address_space *tmem_folio_mapping(const struct folio *folio);
unsigned long tmem_folio_index(const struct folio *folio);
swp_entry_t tmem_folio_swap(const struct folio *folio);

/* swap */
unsigned int tmem_swp_type(swp_entry_t entry);
unsigned long tmem_swp_offset(swp_entry_t entry);
struct swap_iocb *tmem_alloc_swap_iocb(void);
struct folio *tmem_bvec_folio(const struct bio_vec *bv);
void tmem_swap_complete(struct swap_io_ctx *ctx, int rw, long result);
bool tmem_swap_area_get(struct swap_info_struct *sis);
void tmem_swap_area_put(struct swap_info_struct *sis);
void tmem_count_swap_in(unsigned long pages);
void tmem_set_zswap_load(void *addr);
int tmem_call_zswap_load(struct folio *folio);

/* block devices */
bool tmem_bdev_is_dm(struct block_device *bdev);
unsigned int tmem_bdev_major(struct block_device *bdev);
struct file *tmem_bdev_open(const char *path, void *holder);
bool tmem_bdev_stackable(struct block_device *bdev);
void *tmem_bdev_data(struct block_device *bdev);
struct gendisk *tmem_disk_alloc(struct block_device *lower,
				const struct block_device_operations *ops,
				void *data, const char *name, int major,
				int minor, unsigned int max_pages,
				unsigned int align_pages);
bool tmem_disk_close(struct gendisk *disk, bool *closed);
int tmem_bdev_transfer(struct block_device *bdev, u64 block,
		       struct bio_vec *vectors, unsigned int count, bool write);

/* bios */
enum tmem_bio_kind {
	/* Reads pages. */
	TMEM_BIO_READ,
	/* Writes pages that are swapped out. */
	TMEM_BIO_SWAP,
	/* Changes what is on the device otherwise. */
	TMEM_BIO_CHANGE,
	/* Neither. */
	TMEM_BIO_OTHER,
};

enum tmem_bio_kind tmem_bio_kind(const struct bio *bio);
bool tmem_bio_range(const struct bio *bio, u64 *first, u64 *count);
unsigned int tmem_bio_pages(struct bio *bio, struct page **pages,
			    unsigned int max);
struct bio *tmem_bio_split(struct bio *bio, unsigned int pages);
void tmem_bio_forward(struct bio *bio, struct block_device *to);
void tmem_bio_end(struct bio *bio, int err);

/* memory with a reserve */
mempool_t *tmem_mempool_new(unsigned int count, size_t size);
void *tmem_mempool_alloc(mempool_t *pool, bool wait);

/* sysfs */
void tmem_device_attribute_init(struct device_attribute *attr,
				const char *name, umode_t mode,
				ssize_t (*show)(struct device *dev,
						struct device_attribute *attr,
						char *buf),
				ssize_t (*store)(struct device *dev,
						 struct device_attribute *attr,
						 const char *buf, size_t len));

/* the page cache */

/*
 * A bit of sb->s_iflags that the kernel has no use for: of a filesystem that has
 * reported an error.
 */
#define TMEM_SB_DISTRUSTED (BITS_PER_LONG - 1)

bool tmem_mapping_cacheable(struct address_space *mapping);
bool tmem_superblock_distrust(struct super_block *sb);
bool tmem_superblock_shareable(const struct super_block *sb);
bool tmem_superblock_hold(struct super_block *sb);
int tmem_superblock_stamp(struct super_block *sb, u64 *stamp);
struct super_block *tmem_reconfigured(const void *context);
bool tmem_mapping_ban(struct address_space *mapping);
bool tmem_mapping_banned(const struct address_space *mapping);
bool tmem_mapping_swaps(const struct address_space *mapping);
bool tmem_mapping_invalidating(struct address_space *mapping);
bool tmem_mapping_invalidated_by_us(struct address_space *mapping);
bool tmem_inode_write_locked(struct inode *inode);
void tmem_report_difference(struct address_space *mapping, unsigned long index,
			    u32 host, u32 disk);
u64 tmem_inode_bytes_in_blocks(struct inode *inode);
bool tmem_mapping_exiting(struct address_space *mapping);
bool tmem_mapping_regular(struct address_space *mapping);
bool tmem_inode_quiet(struct inode *inode);
void tmem_set_remove_mapping(void *addr);
int tmem_call_remove_mapping(struct address_space *mapping,
			     struct folio *folio, bool reclaimed,
			     struct mem_cgroup *memcg);
unsigned int tmem_readahead_count(struct readahead_control *rac);
struct folio *tmem_readahead_peek_at(struct readahead_control *rac,
				     unsigned long pages);
struct folio *tmem_readahead_peek(struct readahead_control *rac);
struct folio *tmem_readahead_next(struct readahead_control *rac);
void tmem_readahead_settle(struct readahead_control *rac);

#endif /* _TMEM_HELPERS_H */
