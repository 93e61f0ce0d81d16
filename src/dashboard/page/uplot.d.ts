// Served from the package of that name (../assets.ts).
import uPlot from 'uplot'
export default uPlot
