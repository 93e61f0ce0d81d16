-- Locks of one transaction are LOCK TABLE on tables of ours: only our roles may take those, they are fair, and they end
-- with the transaction. Whoever waits has a limit (lock_timeout) and is told who was in the way.
create or replace function lighter.lock_holders(target regclass) returns text
language sql volatile
set search_path = pg_catalog, pg_temp
as $$
  select string_agg(format('pid %s, user %s%s%s', l.pid, coalesce(a.usename, '?'),
           coalesce(', since ' || to_char(a.xact_start, 'YYYY-MM-DD HH24:MI:SSOF'), ''),
           coalesce(' (' || nullif(a.application_name, '') || ')', '')), '; ' order by l.pid)
    from (select distinct pid from pg_locks
           where locktype = 'relation' and granted and pid <> pg_backend_pid()
             and database = (select oid from pg_database where datname = current_database())
             and relation = target and mode not in ('AccessShareLock', 'RowShareLock')) l
    left join pg_stat_activity a on a.pid = l.pid;
$$;
comment on function lighter.lock_holders(regclass) is
  'Which sessions hold a lock on a table that is more than a reader''s: pid, user, since when; null when none does.';
revoke all on function lighter.lock_holders(regclass) from public;

create or replace function lighter.lock_attachments() returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  lock table lighter.settings in share row exclusive mode;
exception when lock_not_available then
  raise exception 'another attach, detach or set_threshold is under way: %', coalesce(lighter.lock_holders('lighter.settings'), 'it has just ended')
    using errcode = 'lock_not_available', hint = 'Nothing was changed. Try again, or end that session: select pg_terminate_backend(<pid>);';
end
$$;
comment on function lighter.lock_attachments() is
  'Keeps others from attaching, detaching and setting the threshold until the transaction ends; waits for lock_timeout at most.';
revoke all on function lighter.lock_attachments() from public;
