-- Whether a lock is held is known from its session: a process that dies takes that along. The tag has a random part, so
-- another session that got the same pid is not taken for it; and only a session of the same login could call itself so.
create or replace view lighter.held_locks as
  select l.name, l.pid, pg_get_userbyid(l.login) as login, l.place, l.since, l.tag
    from lighter.locks l
   where exists (
     select from pg_stat_activity a
      where a.pid = l.pid and a.usesysid = l.login and a.application_name = l.tag and a.datname = current_database());
comment on view lighter.held_locks is
  'Sweeps, erasures, backfills, restores and exports under way: what each holds, from which session and since when. To end one: select pg_terminate_backend(pid).';
comment on column lighter.held_locks.name is 'The sweep, or what is backfilled, restored or exported.';
comment on column lighter.held_locks.pid is 'Process of Postgres that serves the holder.';
comment on column lighter.held_locks.login is 'Who it logged in as.';
comment on column lighter.held_locks.place is 'Host and process id of the holder.';
comment on column lighter.held_locks.since is 'Since when it is held.';
comment on column lighter.held_locks.tag is 'application_name of the session.';
