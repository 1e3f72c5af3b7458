"""What becomes of files and runs when processes die: each fault, what is promised, and the file that holds it to that.

Processes that are killed (SIGKILL). The ``n-th change`` tests kill a process just before the n-th time that it makes, opens for
writing, moves or removes a file, for every n or for some spread over all (``killing.py``), so that each state of the folder that a
kill can leave between two changes is reached. The others kill after a random time.

=====================================  ====================================================================================
killed during                          promise, and where it is tested
=====================================  ====================================================================================
a step, a validation, a round          ``--ckpt_path last`` ends as the run left alone, bit for bit: weights, optimiser, random
                                       numbers, log, rollouts; one method of each family (test_killed_runs)
the same, two ranks, all or one        likewise; the ranks that live on end by themselves, with an error (test_killed_runs,
                                       test_killed_ranks: launched by torchrun and by the command itself)
writing a checkpoint                   the one of before stays whole until the new one is; what was begun is removed
                                       (test_killed_writers, test_killed_runs)
fit, at the n-th change                the same command goes on, or begins anew where there is no checkpoint (test_killed_verbs)
tokenising                             the cache is there whole or not at all, and is made again (test_killed_writers)
embedding                              whole shards stay, nothing is stored twice (test_killed_writers, test_killed_verbs)
voting                                 finished shards stay, nothing is counted twice (test_killed_verbs, commands/test_vote)
rollouts                               a round is read back whole, or written anew alike (test_killed_verbs)
export                                 the old folder or the new one, whole (test_killed_writers, test_killed_verbs)
evaluate                               ``--resume`` keeps what was scored (test_killed_verbs)
predict                                no file that looks complete; ``--overwrite`` makes it (test_killed_verbs)
a chain of stages, several members     what was complete is skipped (test_killed_runs, commands/test_members)
=====================================  ====================================================================================
"""
