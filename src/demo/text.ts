// The small world that demo conversations are about: an airline's customers, reservations and flights, the
// tools that an assistant calls on them, and what both sides say. Everything is derived from the seed and a
// name ("customer 3 of tenant 7"), nothing is kept: the same customer comes back with the same reservations
// in a later conversation, as in real data, and that repetition is what makes payloads compress.
import {
  between,
  chance,
  code,
  pick,
  pickIndex,
  type Random,
  runningTotals,
  seededRandom,
  uuid,
} from './random.ts'

/** One tool call, its arguments and result as JSON text: some hold numbers that JavaScript can't. */
export interface ToolCall {
  tool: string
  args: string
  result: string
}

interface Flight {
  flight_number: string
  origin: string
  destination: string
  departure: number
  hours: number
}

export interface World {
  seed: number
  flights: Flight[]
  byOrigin: Map<string, Flight[]>
}

interface Reservation {
  reservation_id: string
  user_id: string
  origin: string
  destination: string
  flight_type: string
  cabin: string
  flights: { origin: string; destination: string; flight_number: string; date: string; price: number }[]
  passengers: { first_name: string; last_name: string; dob: string }[]
  payment_history: { payment_id: string; amount: number }[]
  created_at: string
  total_baggages: number
  nonfree_baggages: number
  insurance: string
}

export interface Customer {
  userId: string
  accountId: string
  profile: { name: { first_name: string; last_name: string }; [field: string]: unknown }
  reservations: [Reservation, ...Reservation[]]
}

const cities = {
  SFO: 'San Francisco',
  JFK: 'New York',
  LAX: 'Los Angeles',
  ORD: 'Chicago',
  DFW: 'Dallas',
  DEN: 'Denver',
  SEA: 'Seattle',
  ATL: 'Atlanta',
  MIA: 'Miami',
  BOS: 'Boston',
  PHX: 'Phoenix',
  IAH: 'Houston',
  LAS: 'Las Vegas',
  MCO: 'Orlando',
  EWR: 'Newark',
  CLT: 'Charlotte',
  MSP: 'Minneapolis',
  DTW: 'Detroit',
  PHL: 'Philadelphia',
  LGA: 'LaGuardia',
}
const airports = Object.keys(cities)
const firstNames = [
  'Amelia',
  'Ivan',
  'Sophia',
  'Raj',
  'Mei',
  'Noah',
  'Fatima',
  'Omar',
  'Yara',
  'Lucas',
  'Aarav',
  'Olivia',
  'Anya',
  'Liam',
]
const lastNames = [
  'Rossi',
  'Kovacs',
  'Taylor',
  'Muller',
  'Davis',
  'Patel',
  'Garcia',
  'Silva',
  'Santos',
  'Jackson',
  'Sanchez',
  'Brown',
]
const streets = [
  'Maple Drive',
  'Sunset Drive',
  'Park Avenue',
  'Elm Street',
  'Hillcrest Drive',
  'Cedar Avenue',
  'Broadway',
]
const cabins = ['basic_economy', 'economy', 'business'] as const
const fares: Record<(typeof cabins)[number], [number, number]> = {
  basic_economy: [51, 100],
  economy: [100, 200],
  business: [200, 500],
}
const reservationAlphabet = 'ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789'

export function createWorld(seed: number): World {
  const random = seededRandom(seed, 'flights')
  const flights: Flight[] = []
  while (flights.length < 300) {
    const origin = pick(random, airports)
    const destination = pick(random, airports)
    if (origin === destination) continue
    const hours = between(random, 2, 12) / 2
    for (let daily = between(random, 1, 4); daily > 0; daily--) {
      const flightNumber = `HAT${String(flights.length + 1).padStart(3, '0')}`
      flights.push({
        flight_number: flightNumber,
        origin,
        destination,
        departure: between(random, 0, 23),
        hours,
      })
    }
  }
  return { seed, flights, byOrigin: Map.groupBy(flights, flight => flight.origin) }
}

export function customerOf(world: World, tenant: number, index: number): Customer {
  const random = seededRandom(world.seed, 'customer', tenant, index)
  const owner = person(random)
  const payments = Array.from({ length: between(random, 1, 4) }, () => paymentMethod(random))
  const userId = `${owner.first_name}_${owner.last_name}_${between(random, 1000, 9999)}`.toLowerCase()
  const payment = () => pick(random, payments).id
  const reservations: Customer['reservations'] = [reservation(world, random, userId, owner, payment())]
  for (let more = between(random, 0, 5); more > 0; more--) {
    reservations.push(reservation(world, random, userId, owner, payment()))
  }
  const profile = {
    name: { first_name: owner.first_name, last_name: owner.last_name },
    address: {
      address1: `${between(random, 100, 999)} ${pick(random, streets)}`,
      address2: `Suite ${between(random, 100, 999)}`,
      city: pick(random, Object.values(cities)),
      country: 'USA',
      zip: String(between(random, 10000, 99999)),
    },
    email: `${owner.first_name}.${owner.last_name}${between(random, 1000, 9999)}@example.com`.toLowerCase(),
    dob: owner.dob,
    payment_methods: Object.fromEntries(payments.map(method => [method.id, method])),
    saved_passengers: Array.from({ length: between(random, 1, 3) }, () => person(random)),
    membership: pick(random, ['regular', 'silver', 'gold']),
    reservations: reservations.map(each => each.reservation_id),
  }
  return { userId, accountId: uuid(random), profile, reservations }
}

function reservation(
  world: World,
  random: Random,
  userId: string,
  owner: Reservation['passengers'][0],
  paymentId: string,
): Reservation {
  const cabin = pick(random, cabins)
  const first = pick(random, world.flights)
  const onward = world.byOrigin.get(first.destination) ?? []
  const legs = onward.length > 0 && chance(random, 0.8) ? [first, pick(random, onward)] : [first]
  const flights = legs.map(leg => ({
    origin: leg.origin,
    destination: leg.destination,
    flight_number: leg.flight_number,
    date: day(random),
    price: between(random, ...fares[cabin]),
  }))
  const passengers = [owner]
  while (passengers.length < 4 && chance(random, 0.4)) passengers.push(person(random))
  const price = flights.reduce((sum, flight) => sum + flight.price, 0) * passengers.length
  return {
    reservation_id: code(random, 6, reservationAlphabet),
    user_id: userId,
    origin: first.origin,
    destination: legs.at(-1)?.destination ?? first.destination,
    flight_type: pick(random, ['one_way', 'round_trip']),
    cabin,
    flights,
    passengers,
    payment_history: [{ payment_id: paymentId, amount: price }],
    created_at: `2024-05-${two(between(random, 1, 14))}T${two(between(random, 0, 23))}:${two(between(random, 0, 59))}:${two(between(random, 0, 59))}`,
    total_baggages: between(random, 0, 4),
    nonfree_baggages: between(random, 0, 1),
    insurance: pick(random, ['yes', 'no']),
  }
}

function person(random: Random): Reservation['passengers'][0] {
  const dob = `${between(random, 1950, 2000)}-${two(between(random, 1, 12))}-${two(between(random, 1, 28))}`
  return { first_name: pick(random, firstNames), last_name: pick(random, lastNames), dob }
}

function paymentMethod(random: Random): { id: string; source: string; [field: string]: unknown } {
  const source = pick(random, ['credit_card', 'gift_card', 'certificate'])
  const id = `${source}_${between(random, 1000000, 9999999)}`
  if (source !== 'credit_card') return { source, amount: between(random, 20, 500), id }
  return {
    source,
    brand: pick(random, ['visa', 'mastercard']),
    last_four: String(between(random, 1000, 9999)),
    id,
  }
}

const day = (random: Random): string => `2024-05-${two(between(random, 15, 30))}`
const two = (value: number): string => String(value).padStart(2, '0')

type Tool = (world: World, customer: Customer, random: Random) => { args: object; result: unknown }

// How often each is called per thousand calls of the measured data.
const tools: [string, number, Tool][] = [
  [
    'get_reservation_details',
    324,
    (_world, customer, random) => {
      const found = pick(random, customer.reservations)
      return { args: { reservation_id: found.reservation_id }, result: found }
    },
  ],
  ['search_direct_flight', 121, searchDirect],
  [
    'get_user_details',
    103,
    (_world, customer) => ({ args: { user_id: customer.userId }, result: customer.profile }),
  ],
  ['update_reservation_flights', 89, updateFlights],
  [
    'calculate',
    82,
    (_world, _customer, random) => {
      const [a, b, passengers] = [between(random, 51, 500), between(random, 51, 500), between(random, 1, 4)]
      return { args: { expression: `(${a} + ${b}) * ${passengers}` }, result: (a + b) * passengers }
    },
  ],
  ['think', 79, (_world, customer, random) => ({ args: { thought: thought(customer, random) }, result: '' })],
  [
    'cancel_reservation',
    59,
    (_world, customer, random) => {
      const found = pick(random, customer.reservations)
      const refunds = found.payment_history.map(paid => ({ ...paid, amount: -paid.amount }))
      const result = {
        ...found,
        payment_history: [...found.payment_history, ...refunds],
        status: 'cancelled',
      }
      return { args: { reservation_id: found.reservation_id }, result }
    },
  ],
  ['book_reservation', 46, book],
  [
    'transfer_to_human_agents',
    41,
    (_world, customer, random) => {
      return {
        args: { summary: `${thought(customer, random)} Requires a human agent.` },
        result: 'Transfer successful',
      }
    },
  ],
  ['search_onestop_flight', 33, searchOneStop],
  [
    'send_certificate',
    7,
    (_world, customer, random) => {
      const amount = between(random, 1, 4) * 50
      const id = `certificate_${between(random, 1000000, 9999999)}`
      return {
        args: { user_id: customer.userId, amount },
        result: `Certificate ${id} added to user ${customer.userId} with amount ${amount}.`,
      }
    },
  ],
  ['list_all_airports', 2, () => ({ args: {}, result: cities })],
]
const toolTotals = runningTotals(tools.map(([, weight]) => weight))

export function callTool(world: World, customer: Customer, random: Random): ToolCall {
  const [tool, , run] = tools[pickIndex(random, toolTotals)] ?? tools[0] ?? never()
  const { args, result } = run(world, customer, random)
  return { tool, args: JSON.stringify(args), result: JSON.stringify(result) }
}

function never(): never {
  throw new RangeError('there are no tools')
}

/** A flight as a search shows it: seats and prices depend on the flight and the date only. */
function offer(world: World, flight: Flight, date: string): object {
  const random = seededRandom(world.seed, flight.flight_number, date)
  const arrival = flight.departure + flight.hours
  return {
    flight_number: flight.flight_number,
    origin: flight.origin,
    destination: flight.destination,
    scheduled_departure_time_est: `${two(flight.departure)}:00:00`,
    scheduled_arrival_time_est: `${two(Math.floor(arrival) % 24)}:${arrival % 1 === 0 ? '00' : '30'}:00${arrival >= 24 ? '+1' : ''}`,
    status: 'available',
    available_seats: Object.fromEntries(cabins.map(cabin => [cabin, between(random, 0, 20)])),
    prices: Object.fromEntries(cabins.map(cabin => [cabin, between(random, ...fares[cabin])])),
  }
}

function searchDirect(world: World, customer: Customer, random: Random): ReturnType<Tool> {
  const wanted = chance(random, 0.6) ? pick(random, customer.reservations).flights[0] : undefined
  const { origin, destination } = wanted ?? pick(random, world.flights)
  const date = wanted?.date ?? day(random)
  const found = (world.byOrigin.get(origin) ?? []).filter(flight => flight.destination === destination)
  return { args: { origin, destination, date }, result: found.map(flight => offer(world, flight, date)) }
}

function searchOneStop(world: World, _customer: Customer, random: Random): ReturnType<Tool> {
  const start = pick(random, world.flights)
  const end = pick(random, world.byOrigin.get(start.destination) ?? world.flights)
  const date = day(random)
  const limit = between(random, 2, 12)
  const result: object[][] = []
  for (const first of world.byOrigin.get(start.origin) ?? []) {
    for (const second of world.byOrigin.get(first.destination) ?? []) {
      if (second.destination !== end.destination || result.length >= limit) continue
      result.push([first, second].map(leg => ({ ...offer(world, leg, date), date })))
    }
  }
  return { args: { origin: start.origin, destination: end.destination, date }, result }
}

function updateFlights(_world: World, customer: Customer, random: Random): ReturnType<Tool> {
  const found = pick(random, customer.reservations)
  const date = day(random)
  const flights = found.flights.map(({ flight_number }) => ({ flight_number, date }))
  const args = {
    reservation_id: found.reservation_id,
    cabin: pick(random, cabins),
    flights,
    payment_id: found.payment_history[0]?.payment_id,
  }
  if (chance(random, 0.35)) return { args, result: 'Error: gift card balance is not enough' }
  return {
    args,
    result: { ...found, cabin: args.cabin, flights: found.flights.map(flight => ({ ...flight, date })) },
  }
}

function book(_world: World, customer: Customer, random: Random): ReturnType<Tool> {
  const wanted = pick(random, customer.reservations)
  const { user_id, origin, destination, flight_type, cabin, flights, passengers, total_baggages, insurance } =
    wanted
  const trip = {
    user_id,
    origin,
    destination,
    flight_type,
    cabin,
    flights,
    passengers,
    total_baggages,
    insurance,
  }
  const args = { ...trip, payment_methods: wanted.payment_history }
  if (chance(random, 0.5)) {
    const [price, paid] = [between(random, 200, 999), between(random, 50, 199)]
    return {
      args,
      result: `Error: payment amount does not add up, total price is ${price}, but paid ${paid}`,
    }
  }
  return {
    args,
    result: {
      ...wanted,
      reservation_id: code(random, 6, reservationAlphabet),
      created_at: '2024-05-15T15:00:00',
    },
  }
}

function thought(customer: Customer, random: Random): string {
  const { reservation_id: id, cabin, insurance } = pick(random, customer.reservations)
  const rule = pick(random, [
    'it was created more than 24 hours ago, so it cannot be cancelled due to a change of plans.',
    'the airline cancelled one of its flights, so a full refund is due.',
    'its flights have not been used yet, so the cabin can be changed for all passengers.',
    'the member is entitled to free checked bags, and each extra bag costs $50.',
  ])
  return `User ${customer.userId}: reservation ${id} is a ${cabin} booking ${insurance === 'yes' ? 'with' : 'without'} insurance; ${rule}`
}

const openings = [
  "Hi! I'd like to cancel a reservation, please.",
  'Hi there! I need to make a change to my reservation {id}. Can you help me with this?',
  "Hello! I'd like to book a flight from {from} to {to}. There will be {n} passengers.",
  "Hi, I'm really upset because my flight from {from} to {to} has been delayed. Can you tell me what's going on?",
  "Hi! I'd like to add {n} checked bags to my flight on {date}, please.",
  "Hi! I recently booked a flight with the reservation number {id}, and I thought I added insurance. It's not showing up.",
]
const requests = [
  'Sure, my user ID is {user}.',
  'Yes, please proceed with that.',
  'Sure, my reservation ID is {id}. Could you check whether it can be moved to {date}?',
  "I'd prefer the cheapest economy flight from {from} to {to} on {date}, if there is one.",
  'Can you use my gift card first, and the rest on my credit card? What will the total be for {n} passengers?',
  "That doesn't sound right. I was told on the phone that I'd get a full refund. Can you check again?",
  "The reason is a change of plans. My {name} can't travel on {date} any more.",
]
const statements = [
  'I found your reservation **{id}** from {from} to {to} in {cabin}.',
  'To proceed, I need to verify your identity. Could you please provide your user ID and the reservation ID?',
  'The cost difference has been charged to your original payment method.',
  'Here are the details:\n\n- **Flight:** {flight}\n- **Date:** {date}\n- **Passengers:** {n}\n- **Price per passenger:** {money}',
  'A refund of {money} will be processed within 5 to 7 business days.',
  'Unfortunately, a {cabin} ticket can only be changed within 24 hours of booking, unless the airline cancels the flight.',
  'Would you like me to proceed (yes/no)?',
  "If there's anything else you need help with, feel free to let me know!",
  'Thank you, {name}. As a member you can take {n} checked bags per passenger; each additional bag costs $50.',
]

export function userText(customer: Customer, random: Random, first: boolean): string {
  const text = fill(pick(random, first ? openings : requests), customer, random)
  return chance(random, 0.25) ? `${text} ${fill(pick(random, requests), customer, random)}` : text
}

export function assistantText(customer: Customer, random: Random): string {
  const count = chance(random, 0.2) ? between(random, 4, 9) : between(random, 2, 4)
  return Array.from({ length: count }, () => fill(pick(random, statements), customer, random)).join(
    chance(random, 0.5) ? ' ' : '\n\n',
  )
}

function fill(template: string, customer: Customer, random: Random): string {
  if (!template.includes('{')) return template
  const about = pick(random, customer.reservations)
  const facts: Record<string, string> = {
    id: about.reservation_id,
    from: about.origin,
    to: about.destination,
    cabin: about.cabin.replace('_', ' '),
    flight: about.flights[0]?.flight_number ?? '',
    date: about.flights[0]?.date ?? '',
    money: `$${about.flights[0]?.price ?? 0}`,
    n: String(about.passengers.length),
    name: customer.profile.name.first_name,
    user: customer.userId,
  }
  return template.replace(/\{(\w+)\}/g, (_, name: string) => facts[name] ?? '')
}

// Values that a detour through JavaScript, Latin-1 or a careless escape would damage.
const hardNumbers = [
  '12345678901234567890.5',
  '1e400',
  '-1E+308',
  '9007199254740993',
  '0.1000000000000000055511151231257827',
  '4.20',
  '-1.5e-320',
]
const hardStrings = [
  'Bon voyage ✈️👩‍👩‍👧‍👦🇫🇷',
  '東京から大阪まで、2名様です。座席は窓側でお願いします',
  'أريد إلغاء الحجز رقم ٤٢ من فضلك',
  'שלום, אפשר להזיז את הטיסה?',
  'quote " backslash \\ slash / tab \t newline \r\n bell \u0007 line separator \u2028 end',
  'Ünïcödé e\u0301 naïve café, zero\u200bwidth, \ufeffmark',
  'not an escape: \\u0000 \\n',
]

export function hardText(random: Random): string {
  return pick(random, hardStrings)
}

/** JSON text of an object with hard numbers and strings, often nested some 50 levels deep. */
export function hardObject(random: Random): string {
  const inner = `{"amount":${pick(random, hardNumbers)},"rate":${pick(random, hardNumbers)},"note":${JSON.stringify(hardText(random))},"escaped":"\\u00e9\\ud83d\\ude80\\/"}`
  if (chance(random, 0.5)) return inner
  const depth = between(random, 45, 55)
  return '{"next":'.repeat(depth) + inner + '}'.repeat(depth)
}

/** A call whose result is about `bytes` long: a document read page by page. */
export function documentAnalysis(world: World, customer: Customer, random: Random, bytes: number): ToolCall {
  const pages: string[] = []
  for (let size = 0; size < bytes; ) {
    const { reservation_id, flights, passengers } = pick(random, customer.reservations)
    const text = Array.from(
      { length: 12 },
      () => `${thought(customer, random)} ${fill(pick(random, statements), customer, random)}`,
    ).join(' ')
    const entities = {
      reservation_id,
      flights,
      passengers,
      offer: offer(world, pick(random, world.flights), day(random)),
    }
    const page = JSON.stringify({
      page: pages.length + 1,
      text,
      confidence: between(random, 800, 999) / 1000,
      entities,
    })
    pages.push(page)
    size += page.length + 1
  }
  const args = { document_id: uuid(random), file_name: 'fare-rules-2024.pdf', mode: 'full' }
  const result = `{"page_count":${pages.length},"pages":[${pages.join(',')}],"summary":${JSON.stringify(thought(customer, random))}}`
  return { tool: 'document_analysis', args: JSON.stringify(args), result }
}
