// A browser or an edge function on Supabase: rows through supabase-js, under the policies of the signed-in user;
// payloads through pg-lighter's API, with the same user's JWT. The API reads the tenant from the token
// (JWT_TENANT_CLAIM=app_metadata.tenant_id), so neither this code nor its user can ask for another's.
import type { SupabaseClient } from '@supabase/supabase-js'
import { createLighterClient, type LighterClient } from 'pg-lighter/client'

export interface Message {
  id: string
  role: string
  content: string
  metadata: Record<string, unknown> | null
}

/** One for as long as the page lives: the token is asked for before every request, so it is never an old one. */
export function lighterOf(supabase: SupabaseClient, lighterUrl: string): LighterClient {
  return createLighterClient({
    baseUrl: lighterUrl,
    token: async () => {
      const { data } = await supabase.auth.getSession()
      if (data.session === null) throw new Error('nobody is signed in')
      return data.session.access_token
    },
  })
}

export async function readMessages(
  supabase: SupabaseClient,
  lighter: LighterClient,
  conversationId: string,
): Promise<Message[]> {
  const { data, error } = await supabase
    .from('conversation_messages')
    .select('id, role, content, metadata')
    .eq('conversation_id', conversationId)
    .order('created_at')
    .overrideTypes<Message[], { merge: false }>()
  if (error !== null) throw error
  return lighter.hydrateMany(data)
}
