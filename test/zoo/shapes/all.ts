import { aiChatbot } from './ai-chatbot.ts'
import { clerk } from './clerk.ts'
import { flowise } from './flowise.ts'
import { langfuse } from './langfuse.ts'
import { langgraph } from './langgraph.ts'
import { litellm } from './litellm.ts'
import { n8n } from './n8n.ts'
import { openWebui } from './open-webui.ts'
import { partitioned } from './partitioned.ts'
import { singleTenant } from './single-tenant.ts'
import { tenantFirst } from './tenant-first.ts'
import { transcripts } from './transcripts.ts'

export const shapes = [
  langgraph,
  aiChatbot,
  openWebui,
  n8n,
  langfuse,
  flowise,
  litellm,
  clerk,
  singleTenant,
  partitioned,
  tenantFirst,
  transcripts,
]
