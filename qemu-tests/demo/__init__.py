# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""One workload in two guests, without the module and with it, to be looked at."""
