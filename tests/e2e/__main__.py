"""Runs the real binary under clients that are not ours: `python tests/e2e`.

JETON names the binary (target/debug/jeton without), GRPCURL the grpcurl to use. `bash .ci/run tools` fetches what it needs.
"""

import sys
import unittest

import client
import examples
import grpcurl


def main():
    loader = unittest.TestLoader()
    suite = unittest.TestSuite(loader.loadTestsFromModule(module) for module in (grpcurl, client, examples))
    result = unittest.TextTestRunner(verbosity=2).run(suite)
    failed = len(result.failures) + len(result.errors) + len(result.unexpectedSuccesses)
    passed = result.testsRun - len(result.failures) - len(result.unexpectedSuccesses)
    passed -= sum(1 for case, _ in result.errors if isinstance(case, unittest.TestCase))
    print(f"{passed} passed, {failed} failed, {len(result.skipped)} skipped")
    return 0 if failed == 0 and passed > 0 and not result.skipped else 1


sys.exit(main())
