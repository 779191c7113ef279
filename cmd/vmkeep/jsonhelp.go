package main

const jsonHelp = `With --json, standard output carries JSON lines and nothing else. Each is an object with "message_type". Fields are
only ever added. Names are in snake case; sizes are bytes; durations are in fields that end in _seconds; times are
RFC 3339 in UTC and absent when unknown. Standard error carries the log, and after a failure one line exit_error.

  message_type  of                    fields
  phase         operations            seq, time, operation, machine, disk, phase
  progress      operations            the same, and progress: done, total, read, stored, eta_seconds; once a second
                                      ($RESTIC_PROGRESS_FPS changes that)
  diagnostic    operations            the same, and diagnostic: severity, code, summary, detail, remedy, object
  result        backup                the same, and result: machine, point or err, warnings, started, finished
  summary       operations            the last line of backup, restore, check, verify, prune, recover, files get:
                                      backup: operation, machines (results), succeeded, degraded, failed, stats
                                      restore: operation, point, machine, machine_id, files, disks, notes, stats
                                      check: repository, snapshots, packs, packs_read, bytes_read, blobs, errors, hints
                                      verify: operation, machines
                                      prune: packs_kept, packs_repacked, packs_removed, bytes_*, notes
                                      recover: undone, remaining
                                      stats: repository, packs, pack_bytes, unused, total, machines
                                      unlock: removed, remaining
                                      repair index: changed, added_packs, lost_packs, salvaged_packs, lost_blobs, ...
                                      files get: directory, files, directories, links, bytes, skipped
                                      files diff: added, removed, changed, same
  initialized   init                  id, version, location
  machine       machines              id, name, path, instance_uuid, ..., disks
  point         points                id, repository, machine, time, consistency, tags, disks, stats, damage, chunking, ...
  plan          restore --plan        point, steps, notes, problems, write
  frame         cat                   offset, length, zeros
  file          files ls, files find  path, type, size, mode, uid, gid, mod_time, link, ...
  difference    files diff            path, change (added, removed or changed), what, before, after (files)
  forget        forget                action (keep or remove), reasons, point
  key           key                   id, created, username, hostname, current, note
  repaired      repair points         point, replacement, lost, damage
  finding       doctor                name, ok, detail, remedy
  setting       env                   name, value, origin, secret
  version       version               version, platform, protocol
  lab           lab                   url, username, password, thumbprint, nfc, pid
  exit_error    any, standard error   exit_code, error (a diagnostic)`
