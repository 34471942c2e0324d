// SPDX-License-Identifier: GPL-2.0
/*
 * What in the kernel's headers is an inline function or a macro, and so out of
 * reach of bindgen. Nothing here decides anything.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/bio.h>
#include <linux/blkdev.h>
#include <linux/buffer_head.h>
#include <linux/bvec.h>
#include <linux/cc_platform.h>
#include <linux/crc32c.h>
#include <linux/dax.h>
#include <linux/fsverity.h>
#include <linux/gfp.h>
#include <linux/highmem.h>
#include <linux/jiffies.h>
#include <linux/module.h>
#include <linux/rwsem.h>
#include <linux/scatterlist.h>
#include <linux/sched.h>
#include <linux/sched/prio.h>
#include <linux/static_call.h>
#include <linux/sysfs.h>
#include <linux/tracepoint.h>
#include <linux/virtio_ring.h>

#include "helpers.h"

int tmem_virtio_find_vqs(struct virtio_device *vdev, unsigned int nvqs,
			 struct virtqueue *vqs[], struct virtqueue_info info[])
{
	return virtio_find_vqs(vdev, nvqs, vqs, info, NULL);
}

void tmem_virtio_del_vqs(struct virtio_device *vdev)
{
	vdev->config->del_vqs(vdev);
}

void tmem_virtio_device_ready(struct virtio_device *vdev)
{
	virtio_device_ready(vdev);
}

/* Unlike virtio_has_feature(), false for a bit that the driver did not ask for. */
bool tmem_virtio_has_feature(const struct virtio_device *vdev,
			     unsigned int fbit)
{
	return fbit < VIRTIO_FEATURES_BITS && __virtio_test_bit(vdev, fbit);
}

u8 tmem_virtio_get_status(struct virtio_device *vdev)
{
	return vdev->config->get_status(vdev);
}

int tmem_virtio_finalize_features(struct virtio_device *vdev)
{
	return vdev->config->finalize_features(vdev);
}

bool tmem_virtio_is_broken(struct virtio_device *vdev)
{
	struct virtqueue *vq;
	bool broken = false;

	spin_lock(&vdev->vqs_list_lock);
	virtio_device_for_each_vq(vdev, vq)
		broken |= virtqueue_is_broken(vq);
	spin_unlock(&vdev->vqs_list_lock);
	return broken;
}

const u16 *tmem_virtqueue_used_index(const struct virtqueue *vq)
{
	if (virtio_has_feature(vq->vdev, VIRTIO_F_RING_PACKED))
		return NULL;
	return (const u16 *)&virtqueue_get_vring(vq)->used->idx;
}

void tmem_virtio_cread_bytes(struct virtio_device *vdev, unsigned int offset,
			     void *buf, size_t len)
{
	virtio_cread_bytes(vdev, offset, buf, len);
}

bool tmem_virtio_get_shm_region(struct virtio_device *vdev,
				struct virtio_shm_region *region, u8 id)
{
	return virtio_get_shm_region(vdev, region, id);
}

/*
 * Adds the first entries of a table of scatterlists, of which some are for the
 * device to read and the rest for it to write. The ends are marked only
 * meanwhile, so that the table need not be made anew for what comes next.
 */
int tmem_virtqueue_add(struct virtqueue *vq, struct scatterlist *table,
		       unsigned int readable, unsigned int writable,
		       void *data, gfp_t gfp)
{
	struct scatterlist *sgs[2];
	struct scatterlist *read_end = NULL, *write_end = NULL;
	unsigned int outs = 0, ins = 0;
	int err;

	if (readable) {
		sgs[outs++] = table;
		read_end = table + readable - 1;
		sg_mark_end(read_end);
	}
	if (writable) {
		sgs[outs + ins++] = table + readable;
		write_end = table + readable + writable - 1;
		sg_mark_end(write_end);
	}
	err = virtqueue_add_sgs(vq, sgs, outs, ins, data, gfp);
	if (read_end)
		sg_unmark_end(read_end);
	if (write_end)
		sg_unmark_end(write_end);
	return err;
}

/* Only memory that is mapped linearly has pages that follow each other. */
bool tmem_sg_set_buf(struct scatterlist *sg, const void *buf, unsigned int len)
{
	unsigned long addr = (unsigned long)buf;

	if (addr < PAGE_OFFSET || addr + len > (unsigned long)high_memory)
		return false;
	sg_set_buf(sg, buf, len);
	return true;
}

void tmem_sg_set_page(struct scatterlist *sg, struct page *page,
		      unsigned int len, unsigned int offset)
{
	sg_set_page(sg, page, len, offset);
}

bool tmem_memory_encrypted(void)
{
	return cc_platform_has(CC_ATTR_MEM_ENCRYPT);
}

void tmem_copy_page(struct page *to, struct page *from)
{
	copy_highpage(to, from);
}

/* Whether the first bytes of two pages are the same. */
bool tmem_pages_equal(struct page *a, struct page *b, size_t len)
{
	void *left = kmap_local_page(a);
	void *right = kmap_local_page(b);
	bool equal = !memcmp(left, right, min(len, PAGE_SIZE));

	kunmap_local(right);
	kunmap_local(left);
	return equal;
}

u32 tmem_crc_page(struct page *page)
{
	void *addr = kmap_local_page(page);
	u32 crc = crc32c(~0, addr, PAGE_SIZE);

	kunmap_local(addr);
	return crc;
}

struct shrinker *tmem_shrinker_register(const char *name,
	unsigned long (*count)(struct shrinker *, struct shrink_control *),
	unsigned long (*scan)(struct shrinker *, struct shrink_control *),
	void *data)
{
	struct shrinker *shrinker = shrinker_alloc(0, "%s", name);

	if (!shrinker)
		return NULL;
	shrinker->count_objects = count;
	shrinker->scan_objects = scan;
	shrinker->private_data = data;
	shrinker_register(shrinker);
	return shrinker;
}

struct workqueue_struct *tmem_alloc_workqueue(const char *name, bool reclaim)
{
	return alloc_workqueue("%s", WQ_UNBOUND | (reclaim ? WQ_MEM_RECLAIM : 0),
			       0, name);
}

struct task_struct *tmem_kthread_run(int (*main)(void *), void *data,
				     const char *name)
{
	struct task_struct *task = kthread_create(main, data, "%s", name);

	if (!IS_ERR(task)) {
		set_user_nice(task, MIN_NICE);
		wake_up_process(task);
	}
	return task;
}

/* Sleeps until *rung, or for so many ticks; true: the thread has to end. */
bool tmem_kthread_wait(const bool *rung, unsigned long ticks)
{
	set_current_state(TASK_IDLE);
	if (!kthread_should_stop() && !READ_ONCE(*rung))
		schedule_timeout(ticks ?: MAX_SCHEDULE_TIMEOUT);
	__set_current_state(TASK_RUNNING);
	return kthread_should_stop();
}

unsigned long tmem_jiffies(void)
{
	return jiffies;
}

/*
 * Whether an address is in the code that stays, which all replacements are in.
 * Called by ftrace handlers for each call of what is hooked: so it is not to be
 * traced itself, and does not go through all of the module's memory.
 */
bool notrace tmem_within_text(unsigned long addr, const struct module *mod)
{
	return within_module_mem_type(addr, mod, MOD_TEXT);
}

void notrace tmem_regs_set_ip(struct ftrace_regs *fregs, unsigned long ip)
{
	ftrace_regs_set_instruction_pointer(fregs, ip);
}

unsigned long notrace tmem_regs_arg(struct ftrace_regs *fregs, unsigned int n)
{
	return ftrace_regs_get_argument(fregs, n);
}

void tmem_tracepoint_synchronize(void)
{
	tracepoint_synchronize_unregister();
}

unsigned long tmem_folio_nr_pages(const struct folio *folio)
{
	return folio_nr_pages(folio);
}

unsigned int tmem_folio_order(const struct folio *folio)
{
	return folio_order(folio);
}

struct page *tmem_folio_page(struct folio *folio, unsigned long n)
{
	return folio_page(folio, n);
}

int tmem_folio_ref_count(const struct folio *folio)
{
	return folio_ref_count(folio);
}

/* Takes a folio that is locked for a read out of the page cache, and unlocks it. */
void tmem_folio_evict(struct folio *folio)
{
	struct address_space *mapping = folio->mapping;

	if (mapping)
		generic_error_remove_folio(mapping, folio);
	folio_unlock(folio);
}

/* Content that equals the disk's, and that nobody else can see any more. */
bool tmem_folio_putable(const struct folio *folio)
{
	return !folio_ref_count(folio) && folio_test_uptodate(folio) &&
	       !folio_test_dirty(folio) && !folio_test_writeback(folio) &&
	       !folio_contain_hwpoisoned_page((struct folio *)folio);
}

bool tmem_folio_workingset(const struct folio *folio)
{
	return folio_test_workingset(folio);
}

/* No content yet, and no state of the filesystem's on it. */
bool tmem_folio_fillable(const struct folio *folio)
{
	return !folio_test_uptodate(folio) && !folio_test_dirty(folio) &&
	       !folio_test_private(folio) && !folio_test_writeback(folio);
}

void tmem_folio_get(struct folio *folio)
{
	folio_get(folio);
}

void tmem_folio_put(struct folio *folio)
{
	folio_put(folio);
}

void tmem_folio_lock(struct folio *folio)
{
	folio_lock(folio);
}

/* Content that is the disk's, unless somebody has written since it was read. */
bool tmem_folio_pristine(const struct folio *folio)
{
	return folio_test_uptodate(folio) && !folio_test_dirty(folio) &&
	       !folio_test_writeback(folio) &&
	       !folio_maybe_dma_pinned((struct folio *)folio);
}

struct address_space *tmem_folio_mapping(const struct folio *folio)
{
	return folio->mapping;
}

unsigned long tmem_folio_index(const struct folio *folio)
{
	return folio->index;
}

swp_entry_t tmem_folio_swap(const struct folio *folio)
{
	return folio->swap;
}

/* The one thing about device-mapper's disks that is not private to it. */
bool tmem_bdev_is_dm(struct block_device *bdev)
{
	return bdev && !strncmp(bdev->bd_disk->disk_name, "dm-", 3);
}

/* Transfers pages to or from a block, in pages, of a device; waits for it. */
int tmem_bdev_transfer(struct block_device *bdev, u64 block,
		       struct bio_vec *vectors, unsigned int count, bool write)
{
	struct bio bio;
	int err;

	bio_init(&bio, bdev, vectors, count,
		 write ? REQ_OP_WRITE | REQ_SWAP : REQ_OP_READ);
	bio.bi_vcnt = count;
	bio.bi_iter.bi_size = count << PAGE_SHIFT;
	bio.bi_iter.bi_sector = block << (PAGE_SHIFT - SECTOR_SHIFT);
	err = submit_bio_wait(&bio);
	bio_uninit(&bio);
	return err;
}

void tmem_device_attribute_init(struct device_attribute *attr,
				const char *name, umode_t mode,
				ssize_t (*show)(struct device *dev,
						struct device_attribute *attr,
						char *buf),
				ssize_t (*store)(struct device *dev,
						 struct device_attribute *attr,
						 const char *buf, size_t len))
{
	sysfs_attr_init(&attr->attr);
	attr->attr.name = name;
	attr->attr.mode = mode;
	attr->show = show;
	attr->store = store;
}

/*
 * What reads the block device's content, unchanged, through the page cache, and
 * is changed through it, too. Not so are, besides those that say it by a flag:
 *
 * - a file of which a page could not be written: what is in memory, clean and
 *   up to date, is not what the disk has (wb_err is never reset);
 * - one of a filesystem that has reported an error;
 * - the file of a quota that is on, which the kernel writes by its blocks;
 * - a file whose data is journalled: when the journal is given up, pages become
 *   clean without having been written.
 */
bool tmem_mapping_cacheable(struct address_space *mapping)
{
	struct inode *inode = mapping->host;

	return (inode->i_sb->s_type->fs_flags & FS_REQUIRES_DEV) &&
	       inode->i_nlink && !IS_DAX(inode) && !IS_ENCRYPTED(inode) &&
	       !IS_VERITY(inode) && !IS_SWAPFILE(inode) && !IS_NOQUOTA(inode) &&
	       !READ_ONCE(mapping->wb_err) &&
	       !test_bit(TMEM_SB_DISTRUSTED, &inode->i_sb->s_iflags) &&
	       mapping->a_ops->migrate_folio != buffer_migrate_folio_norefs;
}

/*
 * A bit of mapping->flags that the kernel has no use for, so that nothing has to
 * be allocated for what must not be forgotten. The kernel clears it when it sets
 * up an inode.
 */
#define TMEM_AS_BANNED (BITS_PER_LONG - 1)
static_assert(TMEM_AS_BANNED >= AS_FOLIO_ORDER_MAX + AS_FOLIO_ORDER_BITS);

/* Returns whether that is news. */
bool tmem_mapping_ban(struct address_space *mapping)
{
	return !test_and_set_bit(TMEM_AS_BANNED, &mapping->flags);
}

bool tmem_mapping_banned(const struct address_space *mapping)
{
	return test_bit(TMEM_AS_BANNED, &mapping->flags);
}

bool tmem_mapping_swaps(const struct address_space *mapping)
{
	return IS_SWAPFILE(mapping->host);
}

/* Whether somebody has the lock for writing. */
static bool write_locked(struct rw_semaphore *sem)
{
#ifdef CONFIG_PREEMPT_RT
	return rwsem_is_locked(sem);
#else
	return atomic_long_read(&sem->count) & RWSEM_WRITER_LOCKED;
#endif
}

/* Whether pages are being dropped because blocks change, and readers kept out. */
bool tmem_mapping_invalidating(struct address_space *mapping)
{
	return write_locked(&mapping->invalidate_lock);
}

/* Whether it is whoever calls who does that. */
bool tmem_mapping_invalidated_by_us(struct address_space *mapping)
{
#ifdef CONFIG_PREEMPT_RT
	return false;
#else
	struct rw_semaphore *sem = &mapping->invalidate_lock;
	/* The lowest bits say what kind of owner it is. */
	unsigned long owner = atomic_long_read(&sem->owner) & ~7UL;

	return write_locked(sem) && owner == (unsigned long)current;
#endif
}

/* Whether somebody writes to the file, or changes its blocks. */
bool tmem_inode_write_locked(struct inode *inode)
{
	return write_locked(&inode->i_rwsem);
}

/* Says that a page which came from the host is not what the disk has. */
void tmem_report_difference(struct address_space *mapping, unsigned long index,
			    u32 host, u32 disk)
{
	struct inode *inode = mapping->host;

	pr_err_ratelimited("%s, inode %llu, page %lu: the host has a page of CRC-32C %08x, the disk one of %08x\n",
			   inode->i_sb->s_id, (unsigned long long)inode->i_ino,
			   index, host, disk);
}

/*
 * How long the file is; 0: it may be so short that it is in its inode, and not in
 * any block. (Some filesystems count blocks elsewhere, so that none says little.)
 */
u64 tmem_inode_bytes_in_blocks(struct inode *inode)
{
	loff_t size = i_size_read(inode);

	return inode->i_blocks || size > PAGE_SIZE ? size : 0;
}

bool tmem_mapping_exiting(struct address_space *mapping)
{
	return mapping_exiting(mapping);
}

bool tmem_mapping_regular(struct address_space *mapping)
{
	struct inode *inode = mapping->host;

	return inode && mapping == &inode->i_data && S_ISREG(inode->i_mode);
}

/* Nobody is inside a truncate or direct I/O that began before the hooks. */
bool tmem_inode_quiet(struct inode *inode)
{
	return !rwsem_is_locked(&inode->i_rwsem) &&
	       !atomic_read(&inode->i_dio_count);
}

/*
 * Calls __remove_mapping(), which is not exported, and which no indirect call
 * may reach: a static call is a direct one.
 */
typedef int (tmem_remove_mapping_t)(struct address_space *mapping,
				    struct folio *folio, bool reclaimed,
				    struct mem_cgroup *memcg);
extern tmem_remove_mapping_t tmem_remove_mapping;
DEFINE_STATIC_CALL_NULL(tmem_remove_mapping, tmem_remove_mapping);

void tmem_set_remove_mapping(void *addr)
{
	static_call_update(tmem_remove_mapping, addr);
}

int tmem_call_remove_mapping(struct address_space *mapping,
			     struct folio *folio, bool reclaimed,
			     struct mem_cgroup *memcg)
{
	int result = static_call(tmem_remove_mapping)(mapping, folio,
						      reclaimed, memcg);

	/* Not the last thing: a jump would hide who calls. */
	barrier();
	return result;
}

unsigned int tmem_readahead_count(struct readahead_control *rac)
{
	return readahead_count(rac) - rac->_batch_count;
}

/* The folio that begins so many pages after the one that comes next. */
struct folio *tmem_readahead_peek_at(struct readahead_control *rac,
				     unsigned long pages)
{
	struct folio *folio;

	if (tmem_readahead_count(rac) <= pages)
		return NULL;
	folio = xa_load(&rac->mapping->i_pages,
			rac->_index + rac->_batch_count + pages);
	return xa_is_value(folio) ? NULL : folio;
}

/* The folio that tmem_readahead_next() would return. */
struct folio *tmem_readahead_peek(struct readahead_control *rac)
{
	return tmem_readahead_peek_at(rac, 0);
}

struct folio *tmem_readahead_next(struct readahead_control *rac)
{
	return readahead_folio(rac);
}

/* Makes what is left begin at the folio after the last one taken. */
void tmem_readahead_settle(struct readahead_control *rac)
{
	rac->_nr_pages -= rac->_batch_count;
	rac->_index += rac->_batch_count;
	rac->_batch_count = 0;
}
