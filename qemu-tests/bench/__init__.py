# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Measures what pages cost, beside what a user could choose instead."""
