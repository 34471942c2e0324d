/* SPDX-License-Identifier: GPL-2.0 */
/* What bindgen reads. */

#include <linux/kprobes.h>
#include <linux/suspend.h>
#include <linux/swap_ops.h>
#include <linux/virtio.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ids.h>

#include "helpers.h"
#include "events.h"
