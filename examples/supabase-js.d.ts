// As much of @supabase/supabase-js as supabase.ts uses, so that it can be type-checked here without it. A project
// that has the package does not need this file.
declare module '@supabase/supabase-js' {
  interface Rows<T> extends PromiseLike<{ data: T; error: null } | { data: null; error: Error }> {
    select(columns: string): Rows<T>
    eq(column: string, value: unknown): Rows<T>
    order(column: string): Rows<T>
    overrideTypes<U, _Options extends { merge: boolean }>(): Rows<U>
  }

  export interface SupabaseClient {
    auth: { getSession(): Promise<{ data: { session: { access_token: string } | null } }> }
    from(table: string): Rows<unknown>
  }
}
