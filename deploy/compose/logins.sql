-- The daemon's login, with no more rights than it needs. Run at every start: the password is what .env says now.
\getenv password LIGHTER_WORKER_PASSWORD
select 'create role lighter_worker login'
 where not exists (select from pg_roles where rolname = 'lighter_worker')
\gexec
alter role lighter_worker password :'password';
grant lighter_daemon to lighter_worker;
