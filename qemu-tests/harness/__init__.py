# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Guests, the daemon and disks, for tests that hold them together."""
